// The sheet of the listening audit: one clip at a time, answers kept in this browser, saved as a file for `speechmill audit`.
(() => {
  const block = document.getElementById("audit-data");
  if (!block) return;
  const sheet = JSON.parse(block.textContent);
  const byId = (id) => document.getElementById(id);
  const key = `speechmill-audit ${sheet.dataset} ${sheet.profile_sha256}`;
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* no storage, or not ours: an empty sheet */ }
  const empty = { fit: null, better: null, note: "", asked: false };
  let answers = Object.fromEntries(sheet.clips.map((clip) => [clip.id, { ...empty, ...(kept.clips || {})[clip.id] }]));
  const listener = byId("audit-listener");
  listener.value = kept.listener || "";
  let at = 0;

  const keep = () => {
    try { localStorage.setItem(key, JSON.stringify({ clips: answers, listener: listener.value })); } catch { /* as above */ }
  };
  const element = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const question = (clip, name, text, choices, asked) => {
    const options = choices.map(([value, label]) => {
      const radio = element("input", { type: "radio", name: `audit-${name}`, value, checked: answers[clip.id][name] === value });
      radio.addEventListener("change", () => { answers[clip.id][name] = value; keep(); asked(); });
      return element("label", {}, radio, ` ${label}`);
    });
    return element("fieldset", {}, element("legend", {}, text), ...options);
  };
  const player = (recording, name) => {
    const audio = element("audio", { controls: true, preload: "metadata", src: recording });
    audio.setAttribute("aria-label", `Play ${name}`);
    audio.addEventListener("play", () => document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); }));
    return element("div", { className: "player" }, element("span", {}, name), audio);
  };
  const isDone = (clip) => answers[clip.id].fit !== null && (!clip.original || answers[clip.id].better !== null);
  const progress = () => { byId("audit-progress").textContent = `${sheet.clips.filter(isDone).length} of ${sheet.clips.length} clips are judged.`; };

  const show = () => {
    const clip = sheet.clips[at];
    const heading = element("h3", { tabIndex: -1 }, `Clip ${at + 1} of ${sheet.clips.length}`);
    const cut = clip.whole - clip.seconds > 0.05 ? [element("p", {}, `Here are the first ${clip.seconds.toFixed(1)} of its ${clip.whole.toFixed(1)} seconds.`)] : [];
    const parts = [heading, ...cut];
    const fit = (name) => question(clip, "fit", `Is ${name} fit for your corpus?`, [["yes", "Yes"], ["no", "No"], ["unsure", "Unsure"]], progress);
    if (clip.original) {
      const second = clip.first === "published" ? "other" : "published";
      const [a, b] = clip.first === "published" ? [clip.published, clip.original] : [clip.original, clip.published];
      const first = second === "published" ? "other" : "published";
      const choices = question(clip, "better", "Which sounds better for your purpose?", [[first, "A"], [second, "B"], ["same", "No difference"]], () => { on.disabled = false; progress(); });
      // The next question names the published one: the first is closed before it is asked.
      const on = element("button", { type: "button", textContent: "Answer, and go on", disabled: answers[clip.id].better === null });
      const ask = () => {
        answers[clip.id].asked = true; // for good: who comes back has seen which one is published
        keep();
        choices.disabled = true;
        on.replaceWith(fit(second === "published" ? "B" : "A"));
      };
      on.addEventListener("click", () => { ask(); byId("audit-clip").querySelector("input[name=audit-fit]").focus(); });
      parts.push(player(a, "A"), player(b, "B"), choices, on);
      if (answers[clip.id].asked) queueMicrotask(ask);
    } else {
      parts.push(player(clip.published, "the clip"), fit("the clip"));
    }
    const note = element("input", { type: "text", id: "audit-note", maxLength: 300, value: answers[clip.id].note, autocomplete: "off" });
    note.addEventListener("input", () => { answers[clip.id].note = note.value; keep(); });
    parts.push(element("p", {}, element("label", { htmlFor: "audit-note" }, "Note "), note));
    byId("audit-clip").replaceChildren(...parts);
    byId("audit-back").disabled = at === 0;
    byId("audit-next").disabled = at === sheet.clips.length - 1;
    progress();
    return heading;
  };
  byId("audit-back").addEventListener("click", () => { at -= 1; show().focus(); });
  byId("audit-next").addEventListener("click", () => { at += 1; show().focus(); });
  byId("audit-new").addEventListener("click", () => {
    if (!confirm("Begin with an empty sheet? The answers that are kept in this browser are gone then; save them first.")) return;
    answers = Object.fromEntries(sheet.clips.map(({ id }) => [id, { ...empty }]));
    listener.value = "";
    at = 0;
    keep();
    show().focus();
  });
  listener.addEventListener("input", keep);
  byId("audit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const clips = sheet.clips.map(({ id }) => ({ id, fit: answers[id].fit, better: answers[id].better, ...(answers[id].note && { note: answers[id].note }) }));
    const { format, version, dataset, profile_sha256, threshold } = sheet;
    const who = listener.value.trim();
    const file = { format, version, dataset, profile_sha256, threshold, ...(who && { listener: who }), clips };
    const link = element("a", { href: URL.createObjectURL(new Blob([`${JSON.stringify(file, null, 1)}\n`], { type: "application/json" })) });
    link.download = `audit-${[dataset, who].filter(Boolean).join("-").replace(/[^\p{L}\p{N}_-]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
  byId("audit").hidden = false;
  byId("to-audit").hidden = false;
  show();
})();
