// What another threshold and other weights would accept (speechmill/report/whatif.py says what the data are).
(() => {
  const block = document.getElementById("whatif-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const scaled = new Uint16Array(bytes(data.scaled)), seconds = new Float32Array(bytes(data.sample_seconds));
  const size = data.criteria.length, MISSING = 65535, steps = data.clips.length - 1;
  const form = document.getElementById("whatif-form"), sliders = [...form.querySelectorAll("input[data-group]")];
  const slider = form.querySelector("#whatif-threshold");
  const byId = (id) => document.getElementById(id);
  const nameOf = (one) => data.groups[one.dataset.group].name;
  let threshold = data.threshold; // exact, until it is moved: it may lie between two steps of the slider
  let weights = Object.fromEntries(data.groups.map((group) => [group.name, group.weight]));

  const spread = (groups) => {
    const total = Object.values(groups).reduce((sum, weight) => sum + weight, 0);
    return data.criteria.map((c) => (total ? groups[c.group] / total * c.share : 0));
  };
  // speechmill/ranking/topsis.py: closeness; -1 where too little of the weight was measured
  const closeness = (clip, weight) => {
    let ideal = 0, anti = 0, there = 0, total = 0;
    for (let i = 0; i < size; i++) {
      const value = scaled[clip * size + i];
      total += weight[i];
      if (value === MISSING) continue;
      const s = value / (MISSING - 1);
      ideal += (weight[i] * (1 - s)) ** 2;
      anti += (weight[i] * s) ** 2;
      there += weight[i];
    }
    if (!(there / total >= data.min_coverage - 1e-9)) return -1;
    return 1 / (1 + Math.sqrt(ideal) / Math.sqrt(anti));
  };
  // Each group's share of the squared distance to the ideal, if all criteria are equally far from it.
  const distances = (weight) => {
    const total = weight.reduce((sum, w) => sum + w * w, 0);
    return data.groups.map((group) => {
      const own = weight.reduce((sum, w, i) => sum + (data.criteria[i].group === group.name ? w * w : 0), 0);
      return total ? own / total : 0;
    });
  };
  const decide = (weight) => Float64Array.from({ length: seconds.length }, (_, clip) => closeness(clip, weight));
  const before = decide(spread(weights));

  const sum = (values, from) => values.slice(from).reduce((total, value) => total + value, 0);
  const accepted = () => {
    if (threshold === data.threshold) return [data.now.clips, data.now.seconds];
    const step = Math.round(threshold * steps);
    return [sum(data.clips, step), sum(data.seconds, step)];
  };
  // Per band: clips in it / clips sampled * sum of what changes, with the variance of that (finite population).
  // Where flips are rare, a sample without any says little: one of each kind is added before the variance is taken
  // (Laplace), in bands that moved far enough for any clip of theirs to get across the threshold.
  const REACH = 1.5; // of the largest move that was sampled in a band
  const difference = () => {
    const after = decide(spread(weights));
    const found = { clips: [0, 0], seconds: [0, 0] };
    let clip = 0;
    data.bands.forEach((band, number) => {
      const n = band.sampled, N = band.clips;
      let gained = 0, lost = 0, time = 0, timeSquared = 0, square = 0, move = 0;
      for (const end = clip + n; clip < end; clip++) {
        const change = (after[clip] >= threshold) - (before[clip] >= threshold);
        gained += change > 0;
        lost += change < 0;
        time += change * seconds[clip];
        timeSquared += (change * seconds[clip]) ** 2;
        square += seconds[clip] ** 2;
        move = Math.max(move, Math.abs(after[clip] - before[clip]));
      }
      if (!n) return;
      const low = number / data.bands.length, high = (number + 1) / data.bands.length;
      const reaches = threshold > low - REACH * move && threshold < high + REACH * move;
      const g = (gained + 1) / (n + 3), l = (lost + 1) / (n + 3);
      const variance = reaches ? g + l - (g - l) ** 2 : 0;
      const ofTime = n > 1 ? (timeSquared - time * time / n) / (n - 1) : 0;
      const scale = N * N * (1 - n / N) / n;
      found.clips[0] += N * (gained - lost) / n;
      found.clips[1] += scale * variance;
      found.seconds[0] += N * time / n;
      found.seconds[1] += scale * Math.max(ofTime, variance * square / n);
    });
    return found;
  };

  const count = (value) => Math.round(value).toLocaleString("en-US");
  const hours = (value) => (value >= 3600 ? `${(value / 3600).toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 })} h` : `${(value / 60).toFixed(1)} min`);
  const rounded = (value) => String(Number(value.toFixed(6))); // for people to copy: exact enough to decide the same
  const signed = (value, show) => (show(Math.abs(value)) === show(0) ? "" : value < 0 ? "−" : "+") + show(Math.abs(value));
  const yaml = (text) => (/^[A-Za-z][A-Za-z0-9_-]*$/.test(text) && !/^(y|n|yes|no|on|off|true|false|null)$/i.test(text) ? text : JSON.stringify(text));
  const shell = (text) => (/^[A-Za-z0-9_\/.=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const short = (value) => String(Number(value.toFixed(3)));

  const show = () => {
    const moved = data.groups.some((group) => weights[group.name] !== group.weight);
    const nothing = !Object.values(weights).some((weight) => weight > 0);
    let [clips, time] = accepted();
    const error = { clips: 0, seconds: 0 };
    if (moved && !nothing) {
      const change = difference();
      clips += change.clips[0];
      time += change.seconds[0];
      error.clips = 1.96 * Math.sqrt(change.clips[1]);
      error.seconds = 1.96 * Math.sqrt(change.seconds[1]);
    }
    const within = (value, show) => (value ? ` ± ${show(value)}` : "");
    byId("whatif-clips").textContent = nothing ? "—" : count(clips) + within(error.clips, count);
    byId("whatif-clips-more").textContent = nothing ? "—" : signed(clips - data.now.clips, count);
    byId("whatif-share").textContent = nothing ? "—" : `${(100 * clips / (data.now.input || 1)).toFixed(1)} %`;
    byId("whatif-share-more").textContent = nothing ? "—" : `${signed(100 * (clips - data.now.clips) / (data.now.input || 1), (v) => v.toFixed(1))} points`;
    byId("whatif-hours").textContent = nothing ? "—" : hours(time) + within(error.seconds, hours);
    byId("whatif-hours-more").textContent = nothing ? "—" : signed(time - data.now.seconds, hours);
    const all = data.bands.every((band) => band.clips === band.sampled);
    const said = nothing ? "At least one weight has to be above 0."
      : !moved ? "Exact: counted over all clips."
      : all ? "Exact, but for clips within 0.00002 of the threshold: every clip that passed the gates is decided here."
      : `Estimated from a stratified sample of ${count(seconds.length)} clips; ± is a 95 % interval.`;
    byId("whatif-error").textContent = nothing ? said : `${byId("whatif-clips").textContent} clips, ${byId("whatif-hours").textContent}. ${said}`;
    form.querySelector("output[for=whatif-threshold]").textContent = short(threshold);
    sliders.forEach((one) => { one.nextElementSibling.textContent = short(weights[nameOf(one)]); });
    const shares = distances(spread(weights));
    form.querySelectorAll("small[data-distance]").forEach((one) => { one.textContent = `${(100 * shares[one.dataset.distance]).toFixed(0)} % of the distance`; });
    const groups = [...data.groups.map((group) => [group.name, rounded(weights[group.name])]), ...data.fixed.map((name) => [name, "0"])];
    const inner = moved ? `, weights: {${groups.map(([name, weight]) => `${yaml(name)}: ${weight}`).join(", ")}}` : data.weights;
    byId("whatif-config").textContent = `rank: {profile: ${yaml(data.setting)}, threshold: ${threshold}${inner}}`;
    const options = moved ? ` --weights ${groups.map(([name, weight]) => shell(`${name}=${weight}`)).join(" ")}` : "";
    byId("whatif-command").textContent = `speechmill rerank ${shell(data.run)} --threshold ${threshold}${options}`;
  };
  slider.addEventListener("input", () => { threshold = Math.round(slider.value * steps) / steps; show(); });
  sliders.forEach((one) => one.addEventListener("input", () => {
    weights = { ...weights, [nameOf(one)]: Number(one.value) };
    show();
  }));
  form.addEventListener("reset", () => {
    threshold = data.threshold;
    weights = Object.fromEntries(data.groups.map((group) => [group.name, group.weight]));
    setTimeout(show); // after the browser has put the sliders back
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("whatif").hidden = false;
  byId("to-whatif").hidden = false;
  show();
})();
