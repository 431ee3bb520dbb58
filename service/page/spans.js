// The spans of a text that surprised the model most.

// The excess in bits above which a character lengthens a span.
const MARGIN_BITS = 1;

/**
 * The most surprising spans, most surprising first: [{start, end, bits, excess}].
 *
 * A character's excess is its surprisal minus the entropy before it, which is the surprisal that the
 * model itself expected: 0 on average over its own texts. The spans are the maximal scoring
 * subsequences of excess - MARGIN_BITS (Ruzzo and Tompa, 1999), found in linear time.
 */
export function surprisingSpans(surprisals, entropies, most) {
  const excess = surprisals.map((bits, i) => bits - entropies[i]);
  const found = maximalSegments(excess.map((value) => value - MARGIN_BITS));
  return found
    .sort((a, b) => b.score - a.score)
    .slice(0, most)
    .map(({ start, end }) => ({
      start,
      end,
      bits: sum(surprisals, start, end),
      excess: sum(excess, start, end),
    }));
}

/** All maximal scoring subsequences; `end` is exclusive. */
export function maximalSegments(scores) {
  const kept = []; // candidates: left and right are the running totals before and after each
  let total = 0;
  scores.forEach((score, i) => {
    const left = total;
    total += score;
    if (score <= 0) return;
    let segment = { start: i, end: i + 1, left, right: total };
    for (;;) {
      let j = kept.length - 1;
      // `shadow` skips candidates whose left total is not lower than this one's.
      while (j >= 0 && kept[j].left >= segment.left) j = kept[j].shadow;
      if (j < 0 || kept[j].right >= segment.right) {
        kept.push({ ...segment, shadow: j });
        return;
      }
      segment = { ...segment, start: kept[j].start, left: kept[j].left };
      kept.length = j;
    }
  });
  return kept.map(({ start, end, left, right }) => ({ start, end, score: right - left }));
}

function sum(values, start, end) {
  let total = 0;
  for (let i = start; i < end; i++) total += values[i];
  return total;
}
