// Input: pointing, clicking, and keys.

// Segments chosen by a click and by pointing: {level, segment, at}, where `at`
// is the position of the byte pointed at, or null; null for no segment. One that
// was chosen in the page of another run beside this one has its `place` there.
let kept = null;
let pointed = null;

function current() {
  return pointed || kept;
}

function paint(root) {
  const now = current();
  const key = now && levels[now.level].keys[now.segment];
  const [from, to] = now ? range(now.level, now.segment) : [0, 0];
  for (const made of root.querySelectorAll('.bar, .cell')) {
    const {level, segment, at} = made.dataset;
    const isCell = at !== undefined;
    const isLevel = now !== null && Number(level) === now.level;
    const isNow = isLevel && Number(segment) === now.segment;
    made.classList.toggle('now', isNow && !isCell);
    made.classList.toggle('inside', isCell && at >= from && at < to);
    made.classList.toggle(
      'same', isLevel && levels[level].keys[segment] === key,
    );
  }
}

const map = byId('map');
const WRONG = 14;
const COLUMN = 9;
map.width = WRONG + COLUMN * (levels.length - 1);
document.documentElement.style.setProperty('--map', `${map.width}px`);

// Draws a column for each level above the first, the top level last.
function drawLevels(context, bar) {
  for (let y = 0; y < map.height; y++) {
    const exact = y / map.height * layout.count;
    const line = Math.floor(exact);
    const [begin, end] = [layout.begin(line), layout.ends[line]];
    const position = Math.floor(begin + (exact - line) * (end - begin));
    for (let number = 1; number < levels.length; number++) {
      const hue = levels[number].hue(levels[number].owner[position]);
      context.fillStyle = `hsl(${hue.toFixed(0)} ${bar})`;
      context.fillRect(WRONG + COLUMN * (number - 1) + 1, y, COLUMN - 1, 1);
    }
  }
}

function drawMap() {
  map.height = map.clientHeight;
  const context = map.getContext('2d');
  const style = getComputedStyle(document.documentElement);
  const perLine = map.height / layout.count;
  drawLevels(context, style.getPropertyValue('--bar'));
  context.fillStyle = style.getPropertyValue('--wrong');
  for (let line = 0; line < layout.count; line++) {
    const [begin, end] = [layout.begin(line), layout.ends[line]];
    let wrong = 0;
    for (let i = begin; i < end; i++) wrong += decoded[i] !== RIGHT;
    context.globalAlpha = 0.6 * wrong / (end - begin);
    context.fillRect(0, line * perLine, WRONG, Math.max(perLine, 0.5));
  }
  context.globalAlpha = 1;
  context.fillStyle = style.getPropertyValue('--ink');
  const now = current();
  if (now === null) return;
  const of = levels[now.level];
  const left = now.level && WRONG + COLUMN * (now.level - 1);
  for (const segment of of.byKey.get(of.keys[now.segment])) {
    const line = layout.lineOf[range(now.level, segment)[0]];
    const height = Math.max(Math.min(perLine, 6), 2);
    context.fillRect(left, line * perLine, now.level ? COLUMN : WRONG, height);
  }
}

function update() {
  const now = current();
  for (const block of inSight.values()) paint(block);
  byId('segment').hidden = byId('same').hidden = now === null;
  if (now !== null) {
    describeSegment(now);
    describeSame(now);
  }
  drawMap();
}

function scrollTo(line) {
  const y = main.offsetTop + line * LINE;
  if (y < scrollY || y + LINE > scrollY + map.height) {
    window.scrollTo(0, y - map.height / 3);
    drawInSight();
  }
}

// Returns the window of another run beside this one, if there is one.
function twin() {
  return Array.from({length: parent.length}, (_, i) => parent[i])
    .find((other) => other !== window);
}

// Returns the level of a chosen segment and where in the text it begins.
function placeOf(chosen) {
  if (chosen === null || chosen.place) return chosen && chosen.place;
  const from = range(chosen.level, chosen.segment)[0];
  return [chosen.level, Math.min(from, numIds - 1)];
}

function segmentAt(place) {
  if (place === null) return null;
  const level = Math.min(place[0], levels.length - 1);
  return {level, segment: levels[level].owner[place[1]], at: null, place};
}

// Shows what was chosen, here and in the other page.
function choose() {
  update();
  twin()?.follow?.([kept, pointed].map(placeOf));
}

window.follow = (places) => {
  [kept, pointed] = places.map(segmentAt);
  update();
};

function keep(level, segment) {
  kept = {level, segment, at: null};
  pointed = null;
  scrollTo(layout.lineOf[placeOf(kept)[1]]);
  choose();
}

function target(event) {
  const made = event.target.closest('[data-segment]');
  if (made === null) return null;
  const {level, segment, at} = made.dataset;
  return {
    level: Number(level),
    segment: Number(segment),
    at: at === undefined ? null : Number(at),
  };
}

function isSameTarget(a, b) {
  return a === b || (a !== null && b !== null && a.level === b.level &&
    a.segment === b.segment && a.at === b.at);
}

main.addEventListener('mouseover', (event) => {
  const next = target(event);
  if (isSameTarget(next, pointed)) return;
  pointed = next;
  choose();
});
main.addEventListener('mouseleave', () => {
  pointed = null;
  choose();
});
main.addEventListener('click', (event) => {
  kept = target(event);
  pointed = null;
  choose();
});
byId('same').addEventListener('click', (event) => {
  const chosen = target(event);
  if (chosen !== null) keep(chosen.level, chosen.segment);
});
map.addEventListener('click', (event) => {
  const line = Math.floor(event.offsetY / map.height * layout.count);
  window.scrollTo(0, main.offsetTop + line * LINE - map.height / 3);
});
byId('curve').addEventListener('change', (event) => {
  curve = event.target.value;
  event.target.blur();
  drawAnew();
});

function besides(now, by) {
  const of = levels[now.level];
  const all = of.byKey.get(of.keys[now.segment]);
  const at = all.indexOf(now.segment) + by;
  return all[(at + all.length) % all.length];
}

function step(now, by) {
  const {count} = levels[now.level];
  return [now.level, Math.min(Math.max(now.segment + by, 0), count - 1)];
}

function climb(now, by) {
  const level = Math.min(Math.max(now.level + by, 0), levels.length - 1);
  if (level === now.level) return [level, now.segment];
  return [level, levels[level].at(levels[now.level].start[now.segment])];
}

const KEYS = {
  ArrowLeft: (now) => step(now, -1),
  ArrowRight: (now) => step(now, 1),
  ArrowUp: (now) => climb(now, 1),
  ArrowDown: (now) => climb(now, -1),
  n: (now) => [now.level, besides(now, 1)],
  p: (now) => [now.level, besides(now, -1)],
  Home: (now) => [now.level, 0],
  End: (now) => [now.level, levels[now.level].count - 1],
};

document.addEventListener('keydown', (event) => {
  const isTyping = event.target.tagName === 'SELECT';
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === 'Escape') {
    kept = pointed = null;
    choose();
  } else if (event.key in KEYS) {
    const now = current();
    // The first key selects the first segment in view.
    const at = layout.begin(Math.max(Math.ceil((scrollY - main.offsetTop) / LINE), 0));
    keep(...(now === null ? [0, levels[0].at(at)] : KEYS[event.key](now)));
  } else {
    return;
  }
  event.preventDefault();
});

// Where the other page scrolled this one to.
let told = -Infinity;
window.see = (position, share) => {
  window.scrollTo(0, main.offsetTop + (layout.lineOf[position] + share) * LINE);
  told = scrollY;
};

let waiting = null;
window.addEventListener('scroll', () => {
  waiting ??= requestAnimationFrame(() => {
    waiting = null;
    drawInSight();
    if (Math.abs(scrollY - told) > 1) {
      const exact = Math.max((scrollY - main.offsetTop) / LINE, 0);
      const line = Math.min(Math.floor(exact), layout.count - 1);
      twin()?.see?.(layout.begin(line), exact - line);
    }
    told = -Infinity;
  });
});
window.addEventListener('resize', drawAnew);

describeRun();
byId('legend').open = !narrow.matches;
drawAnew();
