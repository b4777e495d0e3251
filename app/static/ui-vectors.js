// Vectors: read from an answer, compared, ranked. Pure.

/** A vector of an answer, a list of numbers or base64 of little-endian float32. */
export function readVector(embedding) {
  if (typeof embedding !== "string") return Float32Array.from(embedding);
  const bytes = Uint8Array.from(atob(embedding), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

export function cosine(one, other) {
  let dot = 0;
  let ones = 0;
  let others = 0;
  for (let index = 0; index < one.length; index++) {
    dot += one[index] * other[index];
    ones += one[index] ** 2;
    others += other[index] ** 2;
  }
  return dot / Math.sqrt(ones * others);
}

/** The cosine of each vector with each. */
export const cosineMatrix = (vectors) => vectors.map((one) => vectors.map((other) => cosine(one, other)));

/** Least and greatest cosine between two different inputs: what a scale has to tell apart. */
export function rangeOf(matrix) {
  const between = matrix.flatMap((row, index) => row.filter((_, other) => other !== index));
  return between.length ? [Math.min(...between), Math.max(...between)] : [0, 1];
}

/** Indices of the candidates, the most similar one to the query first. */
export const ranked = (row, candidates) => candidates.toSorted((one, other) => row[other] - row[one]);
