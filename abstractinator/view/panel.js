// Panel beside the text: the run, a segment, and segments of equal codes.

const MAX_SAME = 200;
const AROUND = 14;

function byId(id) {
  return document.getElementById(id);
}

function bits(x) {
  return `${x.toFixed(2)} bits`;
}

// Returns bytes as text, with dots for spaces.
function visible(bytes) {
  return show(bytes).replace(/ /g, '·');
}

function percent(x) {
  return `${(100 * x).toFixed(1)} %`;
}

function tableRow(tag, values, classes = []) {
  const row = element('tr', '');
  values.forEach((value, i) => row.append(element(tag, classes[i] || '', value)));
  return row;
}

function describeRun() {
  byId('name').textContent = given.name;
  byId('run').textContent = `${text.length} bytes · ${given.run}, step ${given.step}`;
  const table = byId('levels');
  table.append(tableRow('th', ['level', 'cut by', 'segments', 'bytes', 'codes']));
  levels.map((of, number) => tableRow('td', [
    number,
    of.rule.replace(/_/g, ' '),
    of.count,
    (text.length / of.count).toFixed(2),
    `${new Set(of.codes).size} of ${of.numCodes}`,
  ])).reverse().forEach((row) => table.append(row));
  byId('accuracy').textContent =
    `${percent(given.byteAccuracy)} of bytes come back from codes alone, ` +
    `${percent(given.forcedAccuracy)} given the true ones before.`;
  byId('escape').hidden = levels[0].escape === null;
}

function fact(list, name, value, className = '') {
  list.append(element('dt', '', name));
  const made = element('dd', className);
  made.append(value);
  made.dataset.fact = name;
  list.append(made);
}

function describeSegment(now) {
  const of = levels[now.level];
  const [from, to] = range(now.level, now.segment);
  const section = byId('segment');
  const title = `level ${now.level}, segment ${now.segment}`;
  const list = element('dl', '');
  const chip = element('span', 'chip', of.keys[now.segment]);
  chip.style.setProperty('--hue', of.hue(now.segment).toFixed(0));
  fact(list, of.queries > 1 ? 'codes' : 'code', chip);
  if (of.codes[now.segment] === of.escape) {
    fact(list, '*', `code ${of.escape}: not in the dictionary, the expander spells it`);
  }
  fact(list, 'bytes', `${from} to ${Math.max(Math.min(to, text.length) - 1, from)}`);
  fact(list, 'text', visible(bytesBetween(from, to)), 'text');
  const got = decodedOf(now.level, now.segment);
  const isRight = got.join() === bytesBetween(from, to).join();
  fact(list, 'decoded', visible(got) || 'nothing', isRight ? 'text' : 'text wrong-text');
  fact(list, 'entropy model', bits(of.sum('cost', now.segment)));
  fact(list, 'given codes', bits(of.sum('given', now.segment)));
  if (of === peak && topCost !== null) {
    const at = now.segment * of.queries;
    const cost = topCost.subarray(at, at + of.queries).reduce((a, b) => a + b, 0);
    fact(list, 'top LM', bits(cost / 100));
  }
  if (of.isShort(now.segment)) fact(list, 'cut', 'for want of slots');
  section.replaceChildren(element('h2', '', title), list, idTable(now));
  section.hidden = false;
}

// Returns a table of the ids of a segment: bytes, or codes of the level below.
function idTable(now) {
  const of = levels[now.level];
  const table = element('table', '');
  table.append(tableRow('th', [now.level ? 'code' : 'byte', 'entropy', 'cost', 'p given code']));
  for (let i = of.first[now.segment]; i < of.first[now.segment + 1]; i++) {
    const under = levels[now.level - 1];
    const name = under ? under.label(under.codes[i]) : showId(idAt(i));
    const p = 2 ** (-of.bits.given[i] / 100);
    const row = tableRow('td', [
      name,
      (of.bits.entropy[i] / 100).toFixed(2),
      (of.bits.cost[i] / 100).toFixed(2),
      p.toFixed(p < 0.01 ? 4 : 2),
    ], ['text']);
    if (!now.level && forced[i] !== RIGHT) {
      row.cells[3].append(element('span', 'wrong', ` ${showId(forced[i])}!`));
      row.cells[3].title = 'the most likely byte is another one';
    }
    row.classList.toggle('now', !now.level && i === now.at);
    table.append(row);
  }
  return table;
}

function describeSame(now) {
  const of = levels[now.level];
  const all = of.byKey.get(of.keys[now.segment]);
  const section = byId('same');
  const title = all.length === 1
    ? 'no other segment with this code'
    : `${all.length} segments with this code`;
  const list = element('ol', '');
  // Of too many segments, those around this one are listed.
  const here = lastAtMost(all, now.segment);
  const start = Math.max(Math.min(here - MAX_SAME / 2, all.length - MAX_SAME), 0);
  for (const segment of all.slice(start, start + MAX_SAME)) {
    const [from, to] = range(now.level, segment);
    const item = element('li', segment === now.segment ? 'now' : '');
    item.append(
      show(bytesBetween(Math.max(from - AROUND, 0), from)).slice(-AROUND),
      element('b', '', show(bytesBetween(from, to)) || 'end'),
      show(bytesBetween(to, to + 2 * AROUND)),
    );
    Object.assign(item.dataset, {level: now.level, segment});
    list.append(item);
  }
  section.replaceChildren(element('h2', '', title), list);
  if (all.length > MAX_SAME) {
    section.append(element('p', 'soft', `${MAX_SAME} of them are listed`));
  }
  section.hidden = false;
}
