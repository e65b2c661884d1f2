"""The console of the job service, for a browser: lists, jobs with logs and curves, studies, models, endpoints that can be asked.

A page is a module in `pages/` with its functions, and a template of the same name. Pages read and change what the API's own
handlers read and change: no rule stands here twice. `app.py` leads requests to pages, `login.py` knows who is let in.
"""
