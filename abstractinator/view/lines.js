// Lines of the page: only those in view are in the document.

const BAR = 18;
const CODE_CURVE = 13;
const TEXT = 24;
const GOT = 15;
const CURVE = 30;
const GAP = 16;
const main = document.getElementById('text');
// As in page.css: the panel is below the text.
const narrow = matchMedia('(max-width: 800px)');

// From the top: each level under the one above it, then the text.
const barTop = [];
let below = 0;
for (let number = levels.length - 1; number >= 0; number--) {
  barTop[number] = below;
  below += BAR + (number ? CODE_CURVE : 2);
}
const textTop = below;
const gotTop = textTop + TEXT;
const curveTop = gotTop + GOT;
const LINE = curveTop + CURVE + GAP;

let layout = null;
let charWidth = 9;
let margin = 68;
let curve = 'entropy';
const inSight = new Map();

// Bits, in hundredths, at the full height of a curve: the 99.8th percentile.
const highest = {};
for (const name of ['entropy', 'cost', 'given']) {
  highest[name] = levels.map((of) => {
    const sorted = Int16Array.from(of.bits[name]).sort();
    return Math.max(sorted[Math.floor((sorted.length - 1) * 0.998)], 1);
  });
}

function element(tag, className, content) {
  const made = document.createElement(tag);
  made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

function place(made, left, y, width) {
  made.style.left = `${(margin + left * charWidth).toFixed(2)}px`;
  made.style.top = `${y}px`;
  if (width !== undefined) made.style.width = `${(width * charWidth).toFixed(2)}px`;
  return made;
}

function drawBars(block, line, number) {
  const of = levels[number];
  const [begin, end] = [layout.begin(line), layout.ends[line]];
  for (let i = of.at(begin); i < of.count && of.start[i] < end; i++) {
    const left = layout.column(line, of.start[i]);
    const right = layout.column(line, of.start[i + 1]);
    const bar = place(
      element('div', 'bar', of.keys[i]), left, barTop[number], right - left,
    );
    const width = Math.max((right - left) * charWidth - 1.5, 1.5);
    bar.style.width = `${width}px`;
    bar.title = of.keys[i];
    // A code that is cut off would read as another one.
    const room = width / of.keys[i].length;
    bar.classList.toggle('tight', room < 6.6 && room >= 4.8);
    bar.classList.toggle('narrow', room < 4.8);
    bar.style.setProperty('--hue', of.hue(i).toFixed(0));
    bar.classList.toggle('from', of.start[i] < begin);
    bar.classList.toggle('on', of.start[i + 1] > end);
    bar.classList.toggle('short', of.isShort(i));
    Object.assign(bar.dataset, {level: number, segment: i});
    block.append(bar);
  }
}

function drawText(block, line) {
  const of = levels[0];
  for (let c = layout.firstCell[line]; c < layout.firstCell[line + 1]; c++) {
    const cell = cells[c];
    const segment = of.at(cell.at);
    const column = layout.columnOf[cell.at];
    const span = place(
      element('span', `cell ${cell.kind}`, cell.label), column, textTop, cell.width,
    );
    span.style.setProperty('--hue', of.hue(segment).toFixed(0));
    span.classList.toggle('first', of.start[segment] === cell.at);
    Object.assign(span.dataset, {level: 0, segment, at: cell.at});
    block.append(span);
    drawGot(block, cell, column, span);
    if (cell.at && cell.at % given.rowSize === 0) {
      const row = place(element('i', 'row'), column, 0);
      row.style.height = `${curveTop + CURVE}px`;
      row.title = 'a new row: it sees nothing of what comes before';
      block.append(row);
    }
  }
}

// Draws the bytes decoded in the place of a character, where they differ.
function drawGot(block, cell, column, span) {
  const got = [];
  let isWrong = false;
  for (let k = 0; k < cell.size; k++) {
    const id = decoded[cell.at + k];
    isWrong ||= id !== RIGHT;
    got.push(id === RIGHT ? idAt(cell.at + k) : id);
  }
  if (isWrong) {
    span.classList.add('wrong');
    const bytes = got.filter((id) => id >= 0 && id < 256);
    const label = bytes.length ? show(bytes).replace(/ /g, '·') : '–';
    const isLong = label.length > 1.5 * cell.width;
    const made = element('span', 'got', isLong ? '▪' : label);
    made.classList.toggle('escaped', label.length > cell.width && !isLong);
    made.title = `from codes alone: ${bytes.length ? show(bytes) : 'nothing'}`;
    block.append(place(made, column, gotTop, cell.width));
  }
  const after = beyondAt(cell.at + cell.size - 1);
  if (after) {
    const more = element('span', 'got more', `+${after.count}`);
    more.title = `from codes alone, and beyond: ${show(after.bytes)}`;
    block.append(place(more, column + cell.width, textTop - 2));
  }
}

// Returns the curve over the ids of a level in a line, as the path of an area.
function steps(line, number, y, height) {
  const of = levels[number];
  const [begin, end] = [layout.begin(line), layout.ends[line]];
  const parts = [`M0 ${y + height}`];
  const count = of.begin.length - 1;
  for (let i = lastAtMost(of.begin, begin); i < count && of.begin[i] < end; i++) {
    const left = layout.column(line, of.begin[i]) * charWidth;
    const right = layout.column(line, of.begin[i + 1]) * charWidth;
    const share = of.bits[curve][i] / highest[curve][number];
    const level = y + height * (1 - Math.min(Math.max(share, 0), 1));
    parts.push(`H${left.toFixed(1)}V${level.toFixed(1)}H${right.toFixed(1)}`);
  }
  return `${parts.join('')}V${y + height}Z`;
}

function drawCurves(block, line) {
  const holder = element('template');
  holder.innerHTML = '<svg width="1" height="1"><path></path></svg>';
  const svg = holder.content.firstChild;
  svg.style.left = `${margin}px`;
  const paths = [steps(line, 0, curveTop, CURVE)];
  for (let number = 1; number < levels.length; number++) {
    paths.push(steps(line, number, barTop[number] + BAR + 1, CODE_CURVE - 3));
  }
  svg.firstChild.setAttribute('d', paths.join(''));
  block.append(svg);
}

function drawLine(line) {
  const block = element('div', 'line');
  block.style.top = `${line * LINE}px`;
  block.style.height = `${LINE}px`;
  const offset = element('span', 'offset', layout.begin(line));
  offset.style.top = `${textTop + 4}px`;
  block.append(offset);
  for (let number = 0; number < levels.length; number++) {
    const label = element('span', 'offset', `level ${number}`);
    label.style.top = `${barTop[number] + 2}px`;
    block.append(label);
    drawBars(block, line, number);
  }
  drawText(block, line);
  drawCurves(block, line);
  return block;
}

// Draws the lines that came into view and removes those that left it.
function drawInSight() {
  const from = window.scrollY - main.offsetTop - LINE;
  const first = Math.max(Math.floor(from / LINE), 0);
  const last = Math.min(first + Math.ceil(innerHeight / LINE) + 3, layout.count);
  for (const [line, block] of inSight) {
    if (line < first || line >= last) {
      block.remove();
      inSight.delete(line);
    }
  }
  for (let line = first; line < last; line++) {
    if (!inSight.has(line)) {
      inSight.set(line, drawLine(line));
      main.append(inSight.get(line));
      paint(inSight.get(line));
    }
  }
}

function drawAnew() {
  const heights = highest[curve].map((most) => (most / 100).toFixed(1));
  document.getElementById('highest').textContent =
    `full height: ${heights.reverse().join(', ')} bits`;
  main.replaceChildren();
  inSight.clear();
  const probe = element('span', '', '0'.repeat(100));
  main.append(probe);
  margin = narrow.matches ? 46 : 68;
  charWidth = probe.getBoundingClientRect().width / 100;
  probe.remove();
  const columns = Math.floor((main.clientWidth - margin) / charWidth);
  layout = new Layout(Math.max(columns, 20));
  main.style.height = `${layout.count * LINE}px`;
  drawInSight();
  drawMap();
}
