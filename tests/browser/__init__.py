"""Pages in a real browser: Debian's Chromium, driven by Playwright. Skipped, visibly, where there is none."""
