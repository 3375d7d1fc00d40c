// Numbers as people read them.

export function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e15) return value.toExponential(1);
  if (size >= 1e9) return `${(value / 1e9).toPrecision(3)} billion`;
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)} million`;
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export function percent(share, digits = 0) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  const value = share * 100;
  return value > 0 && value < 0.05 ? "<0.1%" : `${value.toFixed(value < 10 ? Math.max(1, digits) : digits)}%`;
}

export function signedPercent(share) {
  const text = percent(Math.abs(share));
  return Math.abs(share) < 0.0005 ? "±0" : `${share > 0 ? "+" : "−"}${text}`;
}

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function clock(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleString() : "–";
}

export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

// The mean with half the width of its 95% interval.
export function interval(values) {
  const middle = mean(values);
  if (values.length < 2) return { mean: middle, half: 0 };
  const spread = values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1);
  return { mean: middle, half: 1.96 * Math.sqrt(spread / values.length) };
}
