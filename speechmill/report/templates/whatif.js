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
  const decide = (weight) => Float64Array.from({ length: seconds.length }, (_, clip) => closeness(clip, weight));
  const before = decide(spread(weights));

  const sum = (values, from) => values.slice(from).reduce((total, value) => total + value, 0);
  const accepted = () => {
    if (threshold === data.threshold) return [data.now.clips, data.now.seconds];
    const step = Math.round(threshold * steps);
    return [sum(data.clips, step), sum(data.seconds, step)];
  };
  // Per band: clips in it / clips sampled * sum of what changes, with the variance of that (finite population).
  const difference = () => {
    const after = decide(spread(weights));
    const found = { clips: [0, 0], seconds: [0, 0] };
    let clip = 0;
    for (const band of data.bands) {
      const sums = { clips: [0, 0], seconds: [0, 0] };
      for (const end = clip + band.sampled; clip < end; clip++) {
        const change = (after[clip] >= threshold) - (before[clip] >= threshold);
        for (const [name, value] of [["clips", change], ["seconds", change * seconds[clip]]]) {
          sums[name][0] += value;
          sums[name][1] += value * value;
        }
      }
      const n = band.sampled, N = band.clips;
      if (!n) continue;
      for (const name of ["clips", "seconds"]) {
        const mean = sums[name][0] / n;
        const variance = n > 1 ? (sums[name][1] - n * mean * mean) / (n - 1) : 0;
        found[name][0] += N * mean;
        found[name][1] += N * N * (1 - n / N) * Math.max(0, variance) / n;
      }
    }
    return found;
  };

  const count = (value) => Math.round(value).toLocaleString("en-US");
  const hours = (value) => (value >= 3600 ? `${(value / 3600).toLocaleString("en-US", { maximumFractionDigits: 1 })} h` : `${(value / 60).toFixed(1)} min`);
  const signed = (value, show) => (show(Math.abs(value)) === show(0) ? "" : value < 0 ? "−" : "+") + show(Math.abs(value));
  const plain = (text) => (/^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(text) ? text : JSON.stringify(text));
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
    byId("whatif-error").textContent = nothing ? "At least one weight has to be above 0."
      : !moved ? "Exact: counted over all clips."
      : all ? "Exact, but for clips within 0.00002 of the threshold: every clip that passed the gates is decided here."
      : `Estimated from a stratified sample of ${count(seconds.length)} clips; ± is a 95 % interval.`;
    form.querySelector("output[for=whatif-threshold]").textContent = short(threshold);
    sliders.forEach((one) => { one.nextElementSibling.textContent = short(weights[one.dataset.group]); });
    const groups = data.groups.map((group) => [group.name, short(weights[group.name])]);
    const inner = moved ? `, weights: {${groups.map(([name, weight]) => `${plain(name)}: ${weight}`).join(", ")}}` : "";
    byId("whatif-config").textContent = `rank: {profile: ${plain(data.setting)}, threshold: ${short(threshold)}${inner}}`;
    const options = moved ? ` --weights ${groups.map(([name, weight]) => shell(`${name}=${weight}`)).join(" ")}` : "";
    byId("whatif-command").textContent = `speechmill rerank ${shell(data.run)} --threshold ${short(threshold)}${options}`;
  };
  slider.addEventListener("input", () => { threshold = Math.round(slider.value * steps) / steps; show(); });
  sliders.forEach((one) => one.addEventListener("input", () => {
    weights = { ...weights, [one.dataset.group]: Number(one.value) };
    show();
  }));
  form.addEventListener("reset", () => {
    threshold = data.threshold;
    weights = Object.fromEntries(data.groups.map((group) => [group.name, group.weight]));
    setTimeout(show); // after the browser has put the sliders back
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("whatif").hidden = false;
  show();
})();
