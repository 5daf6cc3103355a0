"""The content of the page; `browser_test` opens it."""

import html.parser
import re

import numpy as np
import pytest

from abstractinator.view.page import beside, page
from tests.view import tiny_inspection

ABOUT = dict(name='text.txt', run='runs/a', step=3)


def make_page(text, num_levels=1, dictionary=None, **what):
  queries = what.get('queries', 1)
  return page(
    tiny_inspection.make(text, num_levels, **what),
    tiny_inspection.configs(num_levels, queries, dictionary),
    **ABOUT,
  )


@pytest.mark.parametrize('num_levels', [1, 2, 3])
def test_the_worst_50_kilobytes_fit(num_levels):
  # Each byte is a segment with a code of its own, and decoded wrong.
  text = np.random.default_rng(0).bytes(50_000)
  seen = tiny_inspection.make(
    text,
    num_levels,
    wrong=dict.fromkeys(range(50_000), 255),
    forced=dict.fromkeys(range(50_000), 254),
  )
  for level in seen.levels:
    ids = len(text) + 1
    object.__setattr__(level, 'lengths_P', np.ones(ids, int))
    object.__setattr__(level, 'codes_PQ', np.arange(ids)[:, None])
    object.__setattr__(level, 'is_short_P', np.ones(ids, bool))
    for name in ('entropy', 'cost', 'expander'):
      object.__setattr__(level, f'{name}_bits_N', np.full(ids, 17.23))
  seen.beyond.update({i: np.full(99, 7) for i in range(50_000)})
  content = page(seen, tiny_inspection.configs(num_levels), **ABOUT)
  assert len(content) < 3_000_000


def test_it_links_to_nothing():
  text = b'see http://a.example, https://b.example <img src="//c.example/x">'
  content = make_page(text * 2, 3).decode()
  assert not re.search(r'https?:|\bsrc=|//\w+\.\w|@import|url\(', content)
  hrefs = re.findall(r'href="([^"]*)"', content)
  assert hrefs == ['data:,']


class Frames(html.parser.HTMLParser):
  """Collects the pages in the frames of a page."""

  def __init__(self, content):
    super().__init__()
    self.found = []
    self.feed(content.decode())

  def handle_starttag(self, tag, attrs):
    if tag == 'iframe':
      self.found.append(dict(attrs)['srcdoc'])


def test_pages_beside_each_other_are_unchanged():
  pages = [make_page(b'a "text" & <b>', levels) for levels in (1, 2)]
  content = beside(pages, '</title><iframe>')
  assert Frames(content).found == [x.decode() for x in pages]
  assert content.count(b'</title>') == 1


def test_no_name_ends_the_script_or_the_title():
  name = '</script></title><b>SCRIPT DATA STYLE & co'
  content = page(
    tiny_inspection.make(b'text'),
    tiny_inspection.configs(1),
    **ABOUT | {'name': name},
  ).decode()
  assert content.count('</script>') == 2
  assert content.count('</title>') == 1
  assert '<title>&lt;/script&gt;&lt;/title&gt;&lt;b&gt;SCRIPT DATA STYLE' in (
    content
  )
