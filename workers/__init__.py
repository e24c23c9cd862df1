"""What works: claims lanes, answers turns, delivers chunks. Imports `app`, never `app.asgi` or Litestar."""
