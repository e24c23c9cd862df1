-- The words of a voice message are written down when it is answered, and stand from then on as its words: a history has them,
-- and no crash asks for them twice. They are the only words that a worker may write.

GRANT UPDATE (body) ON messages TO qasid_courier;
