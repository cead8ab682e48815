(() => {
  const players = [...document.querySelectorAll("audio")];
  players.forEach((player) => player.addEventListener("play", () => {
    players.forEach((other) => { if (other !== player) other.pause(); });
  }));
  document.querySelectorAll(".pair").forEach((pair) => {
    const [before, after] = pair.querySelectorAll("audio");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Switch while playing";
    button.title = "Go on with the other recording at the same moment";
    button.addEventListener("click", () => {
      const [from, to] = before.paused ? [after, before] : [before, after];
      to.currentTime = from.currentTime % (from.duration || 1);
      to.play();
    });
    pair.append(button);
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details.printed").forEach((one) => { one.open = true; }));
})();
