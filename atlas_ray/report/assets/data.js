"use strict";
// Data in scripts, loaded as needed (a page opened from disk may not fetch), and the search through all text.

const Data = (() => {
  const KEPT = 40; // scripts held in memory
  const held = new Map();
  const arrived = new Map();
  const indexes = new Map();

  // Each file under data/ calls this with its own name.
  window.atlasData = (name, payload) => arrived.set(name, payload);

  const take = (name) => {
    const payload = arrived.get(name);
    arrived.delete(name);
    return payload;
  };

  const load = (name) => {
    const known = held.get(name);
    held.delete(name);
    const found = known ?? new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => { script.remove(); resolve(take(name)); };
      script.onerror = () => { script.remove(); held.delete(name); reject(new Error(`data/${name}.js cannot be read; is the folder whole?`)); };
      document.head.append(script);
    });
    held.set(name, found);
    if (held.size > KEPT) held.delete(held.keys().next().value);
    return found;
  };

  let meta = null;
  const start = () => { meta = take("meta"); return meta; };

  // The lines of all records of a kind ("trajectories", "episodes"), and their numbers by id.
  const index = (kind) => {
    if (!indexes.has(kind)) {
      indexes.set(kind, load(`${kind}-index`).then((lines) => {
        const byId = new Map();
        lines.forEach((line, i) => byId.has(line[0]) ? byId.get(line[0]).push(i) : byId.set(line[0], [i]));
        return { lines, byId };
      }));
    }
    return indexes.get(kind);
  };

  // The last place in an ascending list whose value is not after the one sought.
  const place = (starts, sought) => {
    let low = 0, high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= sought) low = middle; else high = middle - 1;
    }
    return low;
  };

  const record = async (kind, row) => {
    const { starts } = meta[kind];
    const shard = place(starts, row);
    return (await load(`${kind}-${shard}`))[row - starts[shard]];
  };

  // Runs of letters and digits in lower case, cut as shards.py cuts them.
  const words = (query) => [...new Set((query.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).map((word) => [...word].slice(0, 32).join("")))];

  // One or two letters start too many words to be of use: they find that word alone.
  const whole = (word) => [...word].length < 3;

  // Patterns of what a search found, to mark it in a text.
  const marks = (query) => words(query).map((word) => whole(word) ? `${word}(?![\\p{L}\\p{N}])` : word);

  // Rows whose text has, for every word asked for, a word that starts so; null where nothing is asked.
  const search = async (kind, query) => {
    const asked = words(query);
    if (!asked.length) return null;
    const { count, words: firsts } = meta[kind];
    let found = null;
    for (const word of asked) {
      const here = new Uint8Array(count);
      const names = [];
      for (let i = firsts.length ? place(firsts, word) : 0; i < firsts.length; i++) {
        if (firsts[i] > word && (whole(word) || !firsts[i].startsWith(word))) break;
        names.push(`${kind}-words-${i}`);
      }
      for (const rows of await Promise.all(names.map(load))) mark(rows, word, here);
      if (found) for (let i = 0; i < count; i++) here[i] &= found[i];
      found = here;
    }
    return found;
  };

  const mark = (rows, word, here) => {
    for (const row of rows) {
      if (whole(word) ? row[0] !== word : !row[0].startsWith(word)) continue;
      let at = 0;
      for (let i = 1; i < row.length; i++) here[at += row[i]] = 1;
    }
  };

  return { start, index, record, search, marks };
})();
