"""A page that shows served sessions at work: memory, weightings, gates, now and at earlier positions.

`dnc watch` serves it on loopback, as a client of the server like any other.

    site.py    what the browser may ask for
    guard.py   who may ask
    page/      the page itself: plain HTML, CSS and JavaScript modules
"""
