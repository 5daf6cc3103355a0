// Layout of the text: characters of a fixed width, in lines.

const utf8 = new TextDecoder('utf-8', {fatal: true, ignoreBOM: true});

function sizeOf(lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return 2;
  if (lead >= 0xe0 && lead < 0xf0) return 3;
  if (lead >= 0xf0 && lead < 0xf5) return 4;
  return 0;
}

function escaped(byte) {
  return '\\x' + byte.toString(16).padStart(2, '0');
}

// Returns the character that begins at i if it ends by stop, else null.
function characterAt(bytes, i, stop) {
  const size = sizeOf(bytes[i]);
  if (!size || i + size > stop) return null;
  try {
    return utf8.decode(Uint8Array.from(bytes.slice(i, i + size)));
  } catch {
    return null;
  }
}

// Returns the label of a character, and its CSS class.
function shown(character) {
  const code = character.codePointAt(0);
  if (character === ' ') return ['·', 'blank'];
  if (character === '\n') return ['↵', 'blank'];
  if (character === '\t') return ['→', 'blank'];
  if (code < 0x20) return [String.fromCharCode(0x2400 + code), 'blank'];
  if (code === 0x7f) return ['␡', 'blank'];
  if (/[\p{C}\p{Z}]/u.test(character)) {
    return ['U+' + code.toString(16).toUpperCase(), 'escaped'];
  }
  return [/\p{M}/u.test(character) ? '◌' + character : character, ''];
}

// Returns bytes as text; those that are not UTF-8 as \xNN.
function show(bytes) {
  let found = '';
  for (let i = 0; i < bytes.length;) {
    const character = characterAt(bytes, i, bytes.length);
    const [label] = character === null ? [escaped(bytes[i])] : shown(character);
    found += label === '·' ? ' ' : label;
    i += character === null ? 1 : sizeOf(bytes[i]);
  }
  return found;
}

function showId(id) {
  if (id < 0) return 'nothing';
  if (id >= 256) return 'end';
  return id === 32 ? '·' : show([id]);
}

// Characters of the text. One that a segment divides is shown byte by byte.
const cells = [];
for (let i = 0; i < numIds;) {
  if (i === text.length) {
    cells.push({at: i, size: 1, label: 'end', kind: 'escaped', width: 3});
    break;
  }
  const segment = levels[0].at(i);
  const stop = Math.min(levels[0].start[segment + 1], text.length);
  const character = characterAt(text, i, stop);
  if (character === null) {
    cells.push({at: i, size: 1, label: escaped(text[i]), kind: 'escaped', width: 3});
    i += 1;
  } else {
    const size = sizeOf(text[i]);
    const [label, kind] = shown(character);
    const width = kind === 'escaped' ? Math.max(size, 4) : size;
    cells.push({at: i, size, label, kind, width});
    i += size;
  }
}

class Layout {
  // columns: most columns of a line.
  constructor(columns) {
    this.lineOf = new Uint32Array(numIds + 1);
    this.columnOf = new Float32Array(numIds + 1);
    // First cell of each line, the position that it ends at, and its width.
    this.firstCell = [0];
    this.ends = [];
    this.widths = [];
    let column = 0;
    cells.forEach((cell, number) => {
      // Short lines of the text share one line of the page, which is high.
      const isLong = column >= columns / 3;
      const isBroken = isLong && text[cells[number - 1].at] === 10;
      if (number && (isBroken || column + cell.width > columns)) {
        this.close(number, cell.at, column);
        column = 0;
      }
      for (let k = 0; k < cell.size; k++) {
        this.lineOf[cell.at + k] = this.firstCell.length - 1;
        this.columnOf[cell.at + k] = column + cell.width * k / cell.size;
      }
      column += cell.width;
    });
    this.lineOf[numIds] = this.firstCell.length - 1;
    this.columnOf[numIds] = column;
    this.close(cells.length, numIds, column);
    this.count = this.ends.length;
  }

  close(cell, at, column) {
    this.firstCell.push(cell);
    this.ends.push(at);
    this.widths.push(column);
  }

  begin(line) {
    return line ? this.ends[line - 1] : 0;
  }

  // Returns the column of a position in a line; positions may be fractions.
  column(line, position) {
    if (position <= this.begin(line)) return 0;
    if (position >= this.ends[line]) return this.widths[line];
    const whole = Math.floor(position);
    const left = this.columnOf[whole];
    const isLast = whole + 1 >= this.ends[line];
    const right = isLast ? this.widths[line] : this.columnOf[whole + 1];
    return left + (right - left) * (position - whole);
  }
}
