// Offsets in a text. The service counts Unicode code points and JavaScript counts UTF-16 units; a text is never changed.

const segmenters = {};

function segmenter(granularity) {
  if (!globalThis.Intl?.Segmenter) return null;
  return (segmenters[granularity] ??= new Intl.Segmenter(undefined, {granularity}));
}

// The last index of `sorted`, ascending numbers, whose number is at most `value`.
function lastAtMost(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

export class Text {
  constructor(text) {
    this.text = text;
    this.units = /[\ud800-\udbff][\udc00-\udfff]/.test(text) ? unitsOfPoints(text) : null;
  }

  // The number of code points.
  get length() {
    return this.units ? this.units.length - 1 : this.text.length;
  }

  // The UTF-16 offset of a code point.
  toUnit(point) {
    return this.units ? this.units[point] : point;
  }

  // The code point at a UTF-16 offset; inside a surrogate pair, that of its first half.
  toPoint(unit) {
    return this.units ? lastAtMost(this.units, unit) : unit;
  }

  slice(start, end) {
    return this.text.slice(this.toUnit(start), this.toUnit(end));
  }

  // What a person sees as characters: the code points at which they begin, and the length of the text at the end.
  get characters() {
    return (this.starts ??= this.boundaries("grapheme"));
  }

  get words() {
    return (this.wordStarts ??= this.boundaries("word"));
  }

  boundaries(granularity) {
    const found = segmenter(granularity);
    const starts = found
      ? Array.from(found.segment(this.text), (segment) => this.toPoint(segment.index))
      : Array.from({length: this.length}, (_, index) => index);
    return [...starts, this.length];
  }

  // The beginning of the character that holds a code point.
  characterStart(point) {
    return this.characters[lastAtMost(this.characters, Math.min(point, this.length))];
  }

  nextCharacter(point) {
    return next(this.characters, point, this.length);
  }

  previousCharacter(point) {
    return previous(this.characters, point);
  }

  // The beginning of the next or the previous word; white space alone is none.
  nextWord(point) {
    let word = point;
    do word = next(this.words, word, this.length);
    while (word < this.length && this.isBlank(word));
    return word;
  }

  previousWord(point) {
    let word = point;
    do word = previous(this.words, word);
    while (word > 0 && this.isBlank(word));
    return word;
  }

  wordEnd(point) {
    return next(this.words, point, this.length);
  }

  isBlank(point) {
    return /^\s$/u.test(this.slice(point, Math.min(point + 1, this.length)));
  }

  // [start, end) without white space at its edges; null where nothing is left.
  trimmed(start, end) {
    let [first, last] = [start, end];
    while (first < last && this.isBlank(first)) first += 1;
    while (last > first && this.isBlank(last - 1)) last -= 1;
    return first < last ? [first, last] : null;
  }
}

function unitsOfPoints(text) {
  const units = [];
  let unit = 0;
  for (const character of text) {
    units.push(unit);
    unit += character.length;
  }
  units.push(unit);
  return Uint32Array.from(units);
}

function next(starts, point, length) {
  const index = lastAtMost(starts, point) + 1;
  return index < starts.length ? starts[index] : length;
}

function previous(starts, point) {
  const index = lastAtMost(starts, point);
  if (starts[index] < point) return starts[index];
  return index > 0 ? starts[index - 1] : 0;
}
