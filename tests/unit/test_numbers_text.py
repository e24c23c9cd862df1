"""Numbers and their signs: a dose, a sum, a dial code or a list's number comes out as it was written."""

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.whatsapp import from_markdown

LISTS = {
    "with gaps": "5. Notice\n7. Consent\n12. Appeal",
    "backwards": "3. Bronze\n2. Silver\n1. Gold",
    "with zeros": "01. one\n02. two",
    "twice the same": "5. one\n5. two",
    "parted": "1. one\n\ntext\n\n2. two\n\ntext\n\n3. three",
    "nested": "- a\n  1. b\n     more\n  9. c",
    "wide": "9. a\n10. b\n    - c",
    "a sum": "+ 50\n+ 70",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS.keys())
def test_a_list_keeps_the_numbers_that_are_written(text: str) -> None:
    """A paragraph of a law, a rank, a verse: nobody asked for them to be counted. A plus before a number stays one."""
    assert from_markdown(text) == text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("1. a\n1. b\n1. c", "1. a\n2. b\n3. c"),
        ("0. a\n0. b", "0. a\n1. b"),
        ("1) a\n1) b", "1. a\n2. b"),
        ("4) a\n6) b", "4. a\n6. b"),
    ],
)
def test_a_list_whose_numbers_are_left_to_others_is_counted(markdown: str, expected: str) -> None:
    """All of them 1 is Markdown's way to have it numbered; behind them WhatsApp knows a full stop only."""
    assert from_markdown(markdown) == expected


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        (">200 mg/dL: high\n100-199: normal", ">200 mg/dL: high\n100-199: normal"),
        ("HbA1c:\n>= 6.5%: high\n\n>٢٠٠", "HbA1c:\n>= 6.5%: high\n\n>٢٠٠"),
        ("* >= 7\n* >200\n* Diabetes:\n  >=6.5", "- >= 7\n- >200\n- Diabetes:\n  >=6.5"),
        ("||Dose|\n|-|-|\n|> 12 years|5 mg|\n|x<br>> 12|> 5 mg|", ">12 years\n*Dose*: 5 mg\n\nx\n>12\n*Dose*: > 5 mg"),
        ("\\> 200\n&gt; 300 > 200\n\n> \\> 200", ">200\n>300 > 200\n\n> >200"),
        ("> a\n>> b\n\n> 1. c", "> a\n\n> b\n\n> 1. c"),
        (">«200»\n>200", "> «200»\n> 200"),
    ],
)
def test_more_than_a_number_is_no_quote(markdown: str, expected: str) -> None:
    """A phone shows a quote without its sign: of more than 200 it would make 200. Within a quote it begins a line of it."""
    assert from_markdown(markdown) == expected


SIGNS = [
    "2*500*3",
    "24*60*60 = 86400",
    "$5*2 and 3*4",
    "5*$2 + 3*€4",
    "2**10 = 1024, 3**2 = 9",
    "10**-3 mg = 10**-6 kg",
    "(2+3)**2 = (3+2)**2",
    "(a+b)**n = (b+a)**n",
    "3*(4+2)",
    "2*-3*-4",
    "50%*200*3",
    "[dose]*[weight]*2",
    "m²*s²*k, n!*m!*k",
    "A=π*r**2, V=4/3*π*r**3",
    "-5*-3*-2, .5*.5*.5",
    "12m*4m*3m",
    "2*π*r",
    "l*w*h",
    "F = m*a, E = k*q",
    "x**n + y**n = z**n",
    "س**2 + ص**2",
    "س**2 + ص**-2 = ص**-2 + س**-2",
    "س**3 = س*س**2",
    "ح = ط*نق**2*ع، م = ط*نق**2",
    "面积 = 长*宽**2，体积 = 长*宽**3",
    "الطول*العرض*الارتفاع",
    "٢*٥٠٠*٣",
    "长*宽*高",
    "5 *3 = 15, 6* 2 = 12",
    "4111****1111",
    "10~~15, 20~~30",
    "5*",
    "word*",
    "*100*1#",
    "*123#",
    "*#06#",
    "*131*1*amount#",
    "**21*0123456789#",
    "+966 50 123 4567",
    "_id and user_id_",
    "os.__file__",
    "__name__ == '__main__':",
    "src/*/*.py",
    "www.x.com/__init__.py",
    "github.com/a/__b__/c",
    "x.com/a*b*c",
    "50$*5*days",
    "500﷼*3*أشهر",
    "100٪*3*أيام",
    "5 tab.*3*days",
    "5‰*3*days = 5″*3*days",
    "2**n+3**n, 5**10**, a**b**c",
    "2**(n)+3**(n), x**2,y**-2",
    "H**2**O",
    "5ml**5ml**, kg**10**#1, 2**n**=8",
    "*140*phone number#",
    "*100*اپنا نمبر#",
    "__my_name__ of x.__foo__ and def __bar__(self)",
]


@pytest.mark.parametrize("text", SIGNS)
def test_a_sign_between_numbers_is_no_markup(text: str) -> None:
    """A product, a power, a dial code, a masked number, a name, an address: stars and the like stand as written."""
    assert from_markdown(text) == text
    assert from_markdown(f"Take {text} now, **then** {text} again") == f"Take {text} now, *then* {text} again"
    assert from_markdown(f"- الجرعة: {text} ثم {text}") == f"- الجرعة: {text} ثم {text}"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("**5 mg**, **500**(mg), *12:30*, **Note 3:** text", "*5 mg*, *500*(mg), _12:30_, *Note 3:* text"),
        ("**5**-**10** mg, **1**/**2**", "*5*-*10* mg, *1*/*2*"),
        ("**4 mL*kg*%TBSA** (**BMI = 70/(1.75)**2 = 22.9**)", "4 mL*kg*%TBSA (BMI = 70/(1.75)**2 = 22.9)"),
        ("**2*3**, **2**10 = 1024**", "2*3, 2**10 = 1024"),
        ("the **2**nd, **90**s, **5**mg, *ayah*s", "the 2nd, 90s, 5mg, ayahs"),
        ("每天**2**次", "每天2次"),
        ("服用**0.5g*2片**，每日**3次**", "服用0.5g*2片，每日3次"),
        ("س**2*ص**2، س**2*ص**ن", "س**2*ص**2، س**2*ص**ن"),
        ("约**$5**元，约**5$**元，**18+**岁", "约$5元，约5$元，18+岁"),
        ("约**-5℃**以下，约**+5%**，约**±5**", "约-5℃以下，约+5%，约±5"),
        ("**最低**-5℃，**最高**-3℃，每天**5**-10次", "*最低*-5℃，*最高*-3℃，每天**5**-10次"),
        ("س**-2، و**نعم** ثم و**-2** و**نعم**", "س**-2، ونعم ثم و-2 ونعم"),
        ("بين **$10** و**$20**، بـ**٪٥٠** أو **+966 50** و**+966 51**", "بين *$10* و$20، بـ٪٥٠ أو *+966 50* و+966 51"),
        ("الآية **٥**، و*الله* و**الله** ثم الـ**٥**", "الآية *٥*، والله والله ثم الـ٥"),
        ("***100*1#** or **\\*123#**", "*100*1# or *123#"),
        ("(5)*3*(2) = 3*(4+2)*2", "(5)*3 * (2) = 3*(4+2)*2"),
        ("（5）*（3）*（2）, |a|*|b|*|c|", "（5）*（3） * （2）, |a|*|b| * |c|"),
        ("（5）*3*（2）", "（5）*3 * （2）"),
        ("（注）*重点*，这是*重点*（注）", "（注）_重点_，这是重点（注）"),
        ("500**mg**, 5**mg**/kg, a 4**th** of it", "500mg, 5mg/kg, a 4th of it"),
        ("**Area = πr**2**, **2**n** and **S = 2**n**", "Area = πr**2, 2**n and S = 2**n"),
        ("Vitamin B**12**, Covid**19**.", "Vitamin B12, Covid19."),
        ("__Important__: a __bold__ word", "*Important*: a *bold* word"),
        ("*555*[amount]#, *888*<PIN>#", "`*555*[amount]#`, `*888*<PIN>#`"),
        ("*100*+966501234567# or **21*[number]#", "`*100*+966501234567#` or `**21*[number]#`"),
        ("*123*# or *868*1*#, **555*1**#", "`*123*#` or `*868*1*#`, **555*1**#"),
        ("*#*#4636#*#*, *#06#", "`*#*#4636#*#*`, *#06#"),
    ],
)
def test_markup_beside_a_number_is_markup(markdown: str, expected: str) -> None:
    """A dose in bold is not a sum. Of two signs that a phone would take for a pair the second stands between blanks."""
    assert from_markdown(markdown) == expected


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("~~50~~30", "~50~ 30"),
        ("~~5 mg~~10 mg", "~5 mg~ 10 mg"),
        ("**5**_10_", "*5* _10_"),
        ("`5`10", "`5` 10"),
        ("in 2020[3](https://a.b), 5 mg[1](https://c.d)", "in 2020 3: https://a.b, 5 mg 1: https://c.d"),
        ("1**0**0", "1**0**0"),
        ("**2.**500 mg, **Step 2:**500 mg, **5:**30", "*2.* 500 mg, *Step 2:* 500 mg, *5:* 30"),
        ("**١.**٥ مجم، الآية **٢:**٢٥٥", "*١.* ٥ مجم، الآية *٢:* ٢٥٥"),
        ("**Step *2*:**500 mg", "*Step _2_:* 500 mg"),
        ("`1.`5 mg, **2.**`5`", "`1.` 5 mg, *2.* `5`"),
        ("1.**5** mg, **Dose:**5 mg", "1.*5* mg, Dose:5 mg"),
        ("Quran 2:[255](https://a.b), 5 mg.[1](https://c.d)", "Quran 2:255: https://a.b, 5 mg. 1: https://c.d"),
        ("~~10:00~11:00~~ 12:00, ~~5~10元~~ 3元", "~~10:00~11:00~~ 12:00, ~~5~10元~~ 3元"),
        ("~~**5~10**~~ 3", "~~*5~10*~~ 3"),
        ("第(1)~(3)项，第(5)~(7)项", "第(1)~(3)项，第(5) ~ (7)项"),
        ("-10℃~-5℃，-8℃~-3℃，-1℃~2℃", "-10℃~-5℃，-8℃ ~ -3℃，-1℃~2℃"),
        ("~$3, $5~$10; ~old~ (1)~(2), 10%~20%", "~$3, $5 ~ $10; ~old~ (1)~(2), 10%~20%"),
    ],
)
def test_two_numbers_never_become_one(markdown: str, expected: str) -> None:
    """Where the marks between them cannot stand, a blank does; what was struck never looks as if it were not."""
    assert from_markdown(markdown) == expected


operands = st.sampled_from(
    [
        "2",
        "500",
        "0.5",
        "٣",
        "½",
        "10²",
        "1,000",
        "a",
        "π",
        "kg",
        "weight",
        "(a+b)",
        "(2+3)",
        "5mg",
        "50%",
        "-3",
        ".5",
        "$5",
    ]
)
products = st.lists(operands, min_size=2, max_size=5).map("*".join)
WORDS = [
    "take",
    "قال",
    "**bold**",
    "*note*",
    "**Note:**",
    "و**«نص»**",
    "**5 mg**",
    "*12:30*",
    "~~old~~",
    "5*",
    "=",
    "\n- ",
]


@given(st.lists(products | st.sampled_from(WORDS), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_every_product_keeps_its_signs(pieces: list[str]) -> None:
    """Whatever stands around it. Blanks may stand around a sign."""
    result = from_markdown("مثلا " + " ".join(pieces)).replace(" * ", "*")
    assert all(piece in result for piece in pieces if piece not in WORDS)


@given(st.lists(products, min_size=1, max_size=5).map(" = ".join))
@settings(max_examples=300, deadline=None)
def test_no_phone_takes_two_signs_for_bold(text: str) -> None:
    """WhatsApp would not show them, and make the number between them bold."""
    assert regex.search(r"(?<![\w*])\*(?=[^\s*])[^*]*(?<=\S)\*(?![\w*])", from_markdown(text)) is None


TABLES = {
    "a cell too many": (
        "| Drug | Dose |\n|---|---|\n| A | 2 |\n| B | 5 | 10 mg |",
        "*Drug*: A\n*Dose*: 2\n\n*Drug*: B\n*Dose*: 5 | 10 mg",
    ),
    "pipes in code": ("|Say|As|\n|-|-|\n|yes, no|`^(yes|no)$`|", "*Say*: yes, no\n*As*: `^(yes|no)$`"),
    "pipes that are escaped": ("|Say|As|\n|-|-|\n|yes|`a\\|b`|c|", "*Say*: yes\n*As*: `a|b`|c"),
    "pipes in no code": ("|Say|As|\n|-|-|\n| yes | ^(yes|no)$ |", "*Say*: yes\n*As*: ^(yes|no)$"),
    "code in the midst": ("|A|B|\n|-|-|\n|``a`|`b``|c ` d|", "*A*: ```a`|`b```\n*B*: c ` d"),
    "one column": ("|A|\n|-|\n|1|2|3|", "*A*: 1|2|3"),
    "a column without values": ("|Drug|5 mg|\n|-|-|\n|A||\n|B||", "*Drug*: A\n*5 mg*:\n\n*Drug*: B"),
    "a pipe too many": (
        "|A|B|\n|-|-|\n| Fajr | 5:10 | |\n|1|2||\n| 3 | 4 | | |",
        "*A*: Fajr\n*B*: 5:10\n\n*A*: 1\n*B*: 2\n\n*A*: 3\n*B*: 4",
    ),
    "an empty cell in the midst": ("|A|B|\n|-|-|\n|1|a || b| |\n|1||3|", "*A*: 1\n*B*: a || b\n\n*A*: 1\n*B*: 3"),
    "in a quote": ("> |A|B|\n> |-|-|\n> |1|2|3|", "> *A*: 1\n> *B*: 2|3"),
    "in a list": ("1. x\n\n   |A|B|\n   |-|-|\n   |1|2|3|", "1. x\n\n   *A*: 1\n   *B*: 2|3"),
}


@pytest.mark.parametrize(("markdown", "expected"), TABLES.values(), ids=TABLES.keys())
def test_no_cell_of_a_table_is_lost(markdown: str, expected: str) -> None:
    """Pipes in code are code; what a row has beyond its header stands in the last cell, as it is written."""
    assert from_markdown(markdown) == expected
