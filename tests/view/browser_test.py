"""The page in a real browser: what it shows, and how it takes input."""

import re

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from abstractinator.view.page import beside
from tests.helpers import tiny_run
from tests.view import tiny_inspection
from tests.view.page_test import make_page

# Ids of a row; the second row ends within a character.
ROW = 32
_BEGIN = b'die Katze die Maus </script> <b>\n' + (
  'die Tür\tdie \x00€'.encode() + b'\xff\xfe' + ' 鳥'.encode()
)
_DOTS = 2 * ROW - 1 - len(_BEGIN)
TEXT = _BEGIN + b'.' * _DOTS + 'é die Katze end '.encode()
# Segments 'die '; after a tab these bytes end another one.
NUM_SAME = 4


@pytest.fixture
def open_page(browser, tmp_path):
  """Opens pages; then checks that none logged an error or fetched a file."""

  def opened(*args, path=tmp_path / 'page.html', **kwargs):
    if args:
      path.write_bytes(make_page(*args, **kwargs))
    browser.get(path.as_uri())
    return browser

  # Moves the mouse away from the last element of the page before.
  ActionChains(browser).move_by_offset(0, 0).perform()
  browser.get_log('browser')
  yield opened
  assert browser.get_log('browser') == []
  fetched = 'return performance.getEntriesByType("resource").map((x) => x.name)'
  assert browser.execute_script(fetched) == []


def all_of(browser, selector):
  return browser.find_elements(By.CSS_SELECTOR, selector)


def texts(browser, selector):
  return [x.get_attribute('textContent') for x in all_of(browser, selector)]


def bar(browser, level, segment):
  return all_of(
    browser, f'.bar[data-level="{level}"][data-segment="{segment}"]'
  )[0]


def cell(browser, at):
  return all_of(browser, f'.cell[data-at="{at}"]')[0]


def point(browser, element):
  ActionChains(browser).move_to_element(element).perform()


def press(browser, *keys):
  ActionChains(browser).send_keys(*keys).perform()


def facts(browser):
  names = texts(browser, '#segment dt')
  return dict(zip(names, texts(browser, '#segment dd'), strict=True))


def where(browser):
  """Returns the segment that the panel describes, or None."""
  (section,) = all_of(browser, '#segment')
  if not section.is_displayed():
    return None
  (title,) = texts(browser, '#segment h2')
  _, level, _, segment = title.replace(',', '').split()
  return int(level), int(segment)


@pytest.mark.parametrize('num_levels', [1, 2, 3])
def test_all_levels_stand_over_the_text(open_page, num_levels):
  browser = open_page(TEXT, num_levels, row_size=ROW)
  seen = tiny_inspection.make(TEXT, num_levels, row_size=ROW)
  y = []
  for number, level in enumerate(seen.levels):
    codes = {
      int(x.get_attribute('data-segment')): x.get_attribute('textContent')
      for x in all_of(browser, f'.bar[data-level="{number}"]')
    }
    assert codes == dict(enumerate(map(str, level.codes_PQ[:, 0])))
    y.append(bar(browser, number, 0).rect['y'])
  y = [cell(browser, 0).rect['y'], *y]
  assert y == sorted(y, reverse=True)
  assert len(set(y)) == num_levels + 1
  # A bar is as wide as the bytes of its segment.
  left, right = cell(browser, 4).rect, cell(browser, 9).rect
  over = bar(browser, 0, 1).rect
  assert over['x'] == pytest.approx(left['x'], abs=1)
  assert over['x'] + over['width'] == pytest.approx(
    right['x'] + right['width'], abs=2.5
  )
  rows = texts(browser, '#levels tr')
  assert [row[0] for row in rows[1:]] == [*map(str, range(num_levels))][::-1]
  assert str(len(seen.levels[0].lengths_P)) in rows[-1]


def test_the_escape_of_a_dictionary_is_no_number(open_page):
  text = b'one two one six '
  browser = open_page(text, 2, dictionary=3, row_size=ROW)
  # Codes are counted as they first appear, so that 2 is the last of 3.
  bars = [bar(browser, 0, number) for number in range(4)]
  assert [x.get_attribute('textContent') for x in bars] == ['0', '1', '0', '*']
  point(browser, bars[3])
  about = 'code 2: not in the dictionary, the expander spells it'
  assert (facts(browser)['code'], facts(browser)['*']) == ('*', about)
  point(browser, bars[1])
  assert '*' not in facts(browser)
  point(browser, bar(browser, 1, 1))
  assert texts(browser, '#segment td.text') == ['0', '*']
  (escape,) = all_of(browser, '#escape')
  assert escape.is_displayed()
  browser = open_page(text, row_size=ROW)
  assert not all_of(browser, '#escape')[0].is_displayed()


def test_every_byte_is_shown(open_page):
  browser = open_page(TEXT, row_size=ROW)
  shown = texts(browser, '.line .cell')
  assert shown == [
    *'die·Katze·die·Maus·</script>·<b>↵die·Tür→die·␀€',
    *('\\xff', '\\xfe'),
    *('·鳥' + _DOTS * '.'),
    *('\\xc3', '\\xa9'),
    *'·die·Katze·end·',
    'end',
  ]
  assert len(all_of(browser, '.line .row')) == (len(TEXT) + 1) // ROW


def test_pointing_and_clicking(open_page):
  browser = open_page(TEXT, 2, row_size=ROW)
  assert where(browser) is None
  point(browser, bar(browser, 0, 0))
  assert where(browser) == (0, 0)
  assert facts(browser) == {
    'code': '0',
    'bytes': '0 to 3',
    'text': 'die·',
    'decoded': 'die·',
    'entropy model': '1.50 bits',
    'given codes': '3.00 bits',
  }
  assert texts(browser, '#same li b') == ['die '] * NUM_SAME
  assert len(all_of(browser, '.bar.same')) == NUM_SAME
  assert {x.text for x in all_of(browser, '.cell.inside')} == {*'die·'}
  # A click keeps a segment; one that is pointed at takes precedence.
  bar(browser, 0, 0).click()
  point(browser, bar(browser, 1, 1))
  assert where(browser) == (1, 1)
  assert facts(browser)['top LM'] == '1.50 bits'
  point(browser, all_of(browser, '#name')[0])
  assert where(browser) == (0, 0)
  # A byte has its row in the table.
  point(browser, cell(browser, 5))
  assert where(browser) == (0, 1)
  assert texts(browser, '#segment tr.now td') == ['a', '5.00', '0.00', '0.25']
  # A click in the list selects another segment with the same code.
  point(browser, all_of(browser, '#name')[0])
  all_of(browser, '#same li')[1].click()
  assert where(browser) == (0, 2)
  press(browser, Keys.ESCAPE)
  assert where(browser) is None
  assert not all_of(browser, '.bar.same, .bar.now, .cell.inside')


def test_keys(open_page):
  browser = open_page(TEXT, 3, row_size=ROW)
  last = len(tiny_inspection.make(TEXT, 3, row_size=ROW).levels[0].lengths_P)
  path = [
    (Keys.ARROW_RIGHT, (0, 0)),
    (Keys.ARROW_LEFT, (0, 0)),
    (Keys.ARROW_DOWN, (0, 0)),
    (Keys.ARROW_RIGHT, (0, 1)),
    (Keys.ARROW_RIGHT, (0, 2)),
    ('p', (0, 0)),
    ('n', (0, 2)),
    (Keys.ARROW_UP, (1, 1)),
    (Keys.ARROW_UP, (2, 0)),
    (Keys.ARROW_UP, (2, 0)),
    (Keys.ARROW_RIGHT, (2, 1)),
    (Keys.ARROW_DOWN, (1, 2)),
    (Keys.ARROW_DOWN, (0, 4)),
    (Keys.ARROW_LEFT, (0, 3)),
    (Keys.END, (0, last - 1)),
    (Keys.ARROW_RIGHT, (0, last - 1)),
    (Keys.HOME, (0, 0)),
    (Keys.ESCAPE, None),
  ]
  for key, there in path:
    press(browser, key)
    assert where(browser) == there
    assert len(all_of(browser, '.bar.now')) == (there is not None)


def test_what_is_wrong_is_marked(open_page):
  euro = TEXT.index('€'.encode())
  browser = open_page(
    TEXT,
    row_size=ROW,
    wrong={1: ord('o'), 2: -1, euro: 0xE2, euro + 2: 32},
    beyond={1: b'n!'},
    forced={0: ord('D')},
    short=(1,),
  )
  assert texts(browser, '.line .cell.wrong') == ['i', 'e', '€']
  assert texts(browser, '.line .got:not(.more)') == ['o', '\u2013', '▪']
  assert texts(browser, '.got.more') == ['+2']
  point(browser, bar(browser, 0, 0))
  found = facts(browser)
  assert (found['text'], found['decoded']) == ('die·', 'do·')
  assert texts(browser, '#segment td .wrong') == [' D!']
  point(browser, bar(browser, 0, 1))
  found = facts(browser)
  assert found['decoded'] == 'Katze·n!'
  assert found['cut'] == 'for want of slots'
  assert len(all_of(browser, '.line .bar.short')) == 1
  (accuracy,) = texts(browser, '#accuracy')
  assert accuracy.startswith('75.0 % of bytes come back')


def test_curves(open_page):
  browser = open_page(b'abcdefgh', 2, row_size=ROW)

  def heights():
    """Returns the heights of the first curve, from its path."""
    (path,) = all_of(browser, '.line path')
    first = path.get_attribute('d').split('Z')[0]
    y = [float(x.split('H')[0]) for x in first.split('V')[1:]]
    floor = y.pop()
    return [round((floor - x) / 30, 2) for x in y]

  assert heights() == [
    round((x % 8) / 6, 2) if x % 8 < 7 else 1.0 for x in range(9)
  ]
  all_of(browser, '#curve option')[2].click()
  assert heights() == [0.0, 0.5, 1.0] * 3


def test_several_codes_of_a_segment(open_page):
  browser = open_page(TEXT, 2, row_size=ROW, queries=2)
  assert bar(browser, 0, 1).text == '1·2'
  # A segment of the level above has both codes, and so the same bytes.
  below, above = bar(browser, 0, 1).rect, bar(browser, 1, 1).rect
  assert (below['x'], below['width']) == (above['x'], above['width'])
  point(browser, bar(browser, 0, 1))
  assert facts(browser)['codes'] == '1·2'
  press(browser, Keys.ARROW_UP)
  assert where(browser) == (1, 1)
  assert texts(browser, '#segment td.text') == ['1', '2']
  found = facts(browser)
  assert (found['bytes'], found['text']) == ('4 to 9', 'Katze·')


def test_a_long_text_is_drawn_where_it_is_seen(open_page):
  line = 'Zeile mit Wörtern und noch welchen; '
  text = (line * 2000).encode()[:50_000]
  browser = open_page(text, 3, row_size=256)
  assert len(all_of(browser, '.line')) < 20
  height = 'return document.documentElement.scrollHeight'
  assert browser.execute_script(height) > 20 * 900
  press(browser, Keys.ARROW_RIGHT)
  assert where(browser) == (0, 0)
  press(browser, Keys.END)
  assert len(all_of(browser, '.line')) < 20
  (now,) = all_of(browser, '.bar.now')
  seen = (
    'const y = arguments[0].getBoundingClientRect().y; return [y, innerHeight]'
  )
  y, inner = browser.execute_script(seen, now)
  assert 0 <= y < inner
  assert facts(browser)['bytes'].endswith(f' to {len(text) - 1}')
  point(browser, all_of(browser, '#name')[0])
  press(browser, Keys.HOME)
  assert texts(browser, '#segment + #same h2')[0].endswith('with this code')
  assert len(texts(browser, '#same li')) == 200


def style(browser, selector, name):
  """Returns a computed style of the first element of a kind."""
  return browser.execute_script(
    'const found = document.querySelector(arguments[0]);'
    ' return getComputedStyle(found)[arguments[1]]',
    selector,
    name,
  )


def test_the_legend_looks_like_the_text(open_page):
  browser = open_page(TEXT, 2, row_size=ROW, wrong={1: 111}, short=(1,))
  plain = '.cell:not(.wrong)'
  for selector, other, name in (
    ('.bar.short', '.bar:not(.short)', 'backgroundImage'),
    ('.cell.wrong', plain, 'boxShadow'),
    ('.got', plain, 'color'),
    ('.row', plain, 'borderLeftStyle'),
    ('path', plain, 'fill'),
  ):
    there = style(browser, f'.line {selector}', name)
    assert style(browser, f'#legend {selector}', name) == there, selector
    assert style(browser, f'.line {other}', name) != there, selector
  for word in ('red', 'dashed', 'pink'):
    assert word in ''.join(texts(browser, '#legend dd'))


def test_the_map_has_the_levels_above_the_first(open_page):
  browser = open_page(TEXT, 3, row_size=ROW)
  (map_,) = all_of(browser, '#map')
  width, height = 14 + 2 * 9, int(map_.get_property('height'))
  assert map_.get_property('width') == width
  pixels = browser.execute_script(
    'return Array.from(arguments[0].getContext("2d")'
    '.getImageData(0, 0, arguments[1], arguments[2]).data)',
    *(map_, width, height),
  )

  def pixel(x, y):
    at = 4 * (y * width + x)
    return pixels[at : at + 4]

  seen = tiny_inspection.make(TEXT, 3, row_size=ROW)
  for level, x in ((1, 18), (2, 27)):
    last = len(seen.levels[level].lengths_P) - 1
    for segment, y in ((0, 0), (last, height - 1)):
      one = bar(browser, level, segment)
      color = one.value_of_css_property('background-color')
      wanted = [int(x) for x in re.findall(r'\d+', color)[:3]]
      assert pixel(x, y)[:3] == pytest.approx(wanted, abs=2)
  # The first column has what is wrong: here nothing.
  assert pixel(5, 3) == [0, 0, 0, 0]


@pytest.fixture
def resize(browser):
  """Gives the window another size until the test ends."""

  def resized(width):
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)

  yield resized
  browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


@pytest.mark.parametrize(('width', 'is_below'), [(400, True), (1400, False)])
def test_the_panel_covers_no_text(open_page, resize, width, is_below):
  resize(width)
  browser = open_page(TEXT, 3, row_size=ROW)
  press(browser, Keys.END)
  (panel,), (map_,) = all_of(browser, 'aside'), all_of(browser, '#map')
  (now,) = all_of(browser, '.bar.now')
  assert (panel.rect['y'] > 400) == is_below
  assert (panel.rect['width'] > width - 30) == is_below
  free = 'return arguments[0].getBoundingClientRect().bottom'
  bottom = browser.execute_script(free, now)
  assert bottom <= browser.execute_script(free, map_) <= 900
  if is_below:
    assert browser.execute_script(free, map_) <= panel.rect['y']
  right = browser.execute_script(
    'return Math.max(...Array.from(document.querySelectorAll(".line *"),'
    ' (x) => x.getBoundingClientRect().right))'
  )
  assert 200 < right <= map_.rect['x']
  for element in ('documentElement', 'querySelector("aside")'):
    script = f'return document.{element}.scrollWidth'
    assert browser.execute_script(script) <= width
  # What is chosen is seen in the panel at once.
  (title,) = all_of(browser, '#segment h2')
  assert panel.rect['y'] <= title.rect['y'] < 900


def test_two_runs_show_the_same_place(open_page, tmp_path):
  text = ('Zeile mit Wörtern; ' * 400).encode()
  pages = [make_page(text, levels, row_size=256) for levels in (2, 1)]
  path = tmp_path / 'pair.html'
  path.write_bytes(beside(pages, 'text'))
  browser = open_page(path=path)
  left, right = all_of(browser, 'iframe')

  def show(frame):
    browser.switch_to.default_content()
    browser.switch_to.frame(frame)

  def begin():
    return int(facts(browser)['bytes'].split()[0])

  def top():
    """Returns the line at the top of a page: its first byte."""
    tops = {x.rect['y']: x for x in all_of(browser, '.line')}
    (offset, *_) = tops[min(tops)].find_elements(By.CLASS_NAME, 'offset')
    return int(offset.text)

  show(left)
  bar(browser, 1, 1).click()
  place = begin()
  show(right)
  # A run of one level shows its segment at the first byte of that one.
  assert (where(browser), begin()) == ((0, 2), place)
  point(browser, bar(browser, 0, 5))
  place = begin()
  show(left)
  assert (where(browser), begin()) == ((0, 5), place)
  show(right)
  point(browser, all_of(browser, '#name')[0])
  assert where(browser) == (0, 2)
  show(left)
  assert where(browser) == (1, 1)
  press(browser, Keys.END)
  last = len(tiny_inspection.make(text, 2, row_size=256).levels[1].lengths_P)
  assert where(browser) == (1, last - 1)
  place = begin()
  show(right)
  assert begin() == place
  assert top() > len(text) / 2
  press(browser, Keys.ESCAPE)
  assert where(browser) is None
  all_of(browser, '#name')[0].click()
  # The first key chooses what is in view.
  press(browser, Keys.HOME, Keys.HOME)
  assert (where(browser), top()) == ((0, 0), 0)
  show(left)
  assert (where(browser), top()) == ((0, 0), 0)
  browser.switch_to.default_content()


@pytest.mark.nightly
def test_the_page_of_a_run(open_page, tmp_path):
  from abstractinator.cli.main import main

  config = tiny_run.pyramid_config()
  tiny_run.save(tmp_path / 'run', config)
  (tmp_path / 'text').write_bytes(TEXT)
  paths = [str(tmp_path / name) for name in ('run', 'text', 'page.html')]
  assert main(['view', *paths[:2], '--html', paths[2]]) == 0
  browser = open_page(path=tmp_path / 'page.html')
  seen = tiny_run.level(config).inspect(TEXT)
  for number, level in enumerate(seen.levels):
    bars = all_of(browser, f'.bar[data-level="{number}"]')
    codes = {
      int(x.get_attribute('data-segment')): int(x.get_attribute('title'))
      for x in bars
    }
    assert codes == dict(enumerate(level.codes_PQ[:, 0].tolist()))
  press(browser, Keys.ARROW_RIGHT, Keys.ARROW_UP)
  assert where(browser) == (1, 0)
  cost = f'{seen.top_code_bits_N[0]:.2f} bits'
  assert facts(browser)['top LM'] == cost
