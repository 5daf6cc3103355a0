"""Fixture of a real browser, if one is installed."""

import os
import shutil

import pytest

_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


@pytest.fixture(scope='session')
def browser():
  """Opens a browser; without one skips, or fails if REQUIRE_BROWSER=1."""
  binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
  driver = shutil.which('chromedriver')
  if binary is None or driver is None:
    missing = _BROWSERS[0] if binary is None else 'chromedriver'
    message = f'{missing} is not on PATH (Debian: chromium, chromium-driver)'
    if os.environ.get('REQUIRE_BROWSER') == '1':
      pytest.fail(message)
    pytest.skip(message)
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for argument in (
    '--headless=new',
    # The sandbox does not work as root; the pages are the tests' own.
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--disable-gpu',
    '--window-size=1300,900',
  ):
    options.add_argument(argument)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.ChromeService(driver)
  with webdriver.Chrome(options=options, service=service) as opened:
    yield opened
