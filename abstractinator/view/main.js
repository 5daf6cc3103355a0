// Input: pointing, clicking, and keys.

// Segments chosen by a click and by pointing: {level, segment, at}, where `at`
// is the position of the byte pointed at, or null; null for no segment.
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

function drawMap() {
  const map = byId('map');
  map.height = innerHeight;
  const context = map.getContext('2d');
  const style = getComputedStyle(document.documentElement);
  const perLine = map.height / layout.count;
  context.clearRect(0, 0, map.width, map.height);
  context.fillStyle = style.getPropertyValue('--wrong');
  for (let line = 0; line < layout.count; line++) {
    const [begin, end] = [layout.begin(line), layout.ends[line]];
    let wrong = 0;
    for (let i = begin; i < end; i++) wrong += decoded[i] !== RIGHT;
    context.globalAlpha = 0.6 * wrong / (end - begin);
    context.fillRect(0, line * perLine, map.width, Math.max(perLine, 0.5));
  }
  context.globalAlpha = 1;
  context.fillStyle = style.getPropertyValue('--ink');
  const now = current();
  if (now === null) return;
  const of = levels[now.level];
  for (const segment of of.byKey.get(of.keys[now.segment])) {
    const line = layout.lineOf[range(now.level, segment)[0]];
    context.fillRect(0, line * perLine, map.width, Math.max(perLine, 2));
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
  if (y < scrollY || y + LINE > scrollY + innerHeight) {
    window.scrollTo(0, y - innerHeight / 3);
    drawInSight();
  }
}

function keep(level, segment) {
  kept = {level, segment, at: null};
  pointed = null;
  const from = Math.min(range(level, segment)[0], numIds - 1);
  scrollTo(layout.lineOf[from]);
  update();
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
  update();
});
main.addEventListener('mouseleave', () => {
  pointed = null;
  update();
});
main.addEventListener('click', (event) => {
  kept = target(event);
  pointed = null;
  update();
});
byId('same').addEventListener('click', (event) => {
  const chosen = target(event);
  if (chosen !== null) keep(chosen.level, chosen.segment);
});
byId('map').addEventListener('click', (event) => {
  const line = Math.floor(event.offsetY / innerHeight * layout.count);
  window.scrollTo(0, main.offsetTop + line * LINE - innerHeight / 3);
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
    update();
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

let waiting = null;
window.addEventListener('scroll', () => {
  waiting ??= requestAnimationFrame(() => {
    waiting = null;
    drawInSight();
  });
});
window.addEventListener('resize', drawAnew);

describeRun();
drawAnew();
