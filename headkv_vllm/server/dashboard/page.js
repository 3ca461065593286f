// SPDX-License-Identifier: Apache-2.0
// The page: asks for the key where one is needed, shows what does not change, and follows what does.

const EVERY = 1000; // milliseconds between two readings

const server = new Server();
const scores = new HeatMap(byId("scores"), "score", (score) => short(score));
const chart = new UsageChart(byId("usage"));
const plans = new PlanView((body) => guarded(() => server.post("plan", body)));
let config = null;
let timer = null;

/** What `ask` gives; where the server wants a key or is gone, the page says so. */
async function guarded(ask) {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof KeyNeeded) askForKey();
    else if (error instanceof ServerGone) lose(error);
    throw error;
  }
}

/** Show the server's model, and begin to follow it. */
async function start() {
  config = await guarded(() => server.get("config"));
  const served = await guarded(() => server.get("scores"));
  byId("key-form").hidden = byId("notice").hidden = true;
  byId("content").hidden = false;
  byId("forget").hidden = server.key === null;
  byId("model").textContent = describeModel(config);
  byId("versions").textContent = `${config.version} on vLLM ${config.vllm_version}`;
  byId("scores-source").textContent = describeScores(served);
  scores.show(served.values);
  await plans.start(config);
}

function describeModel({ models, settings, num_layers, num_kv_heads, block_size }) {
  const budget = settings.keep_ratio !== null ? `keep ratio ${settings.keep_ratio}` : settings.budget ? `budget ${count(settings.budget)}` : "off";
  return `${models.join(", ")}: ${num_layers} layers of ${num_kv_heads} KV heads, blocks of ${block_size} tokens, policy ${settings.policy}, ${budget}`;
}

function describeScores({ source, origin }) {
  const made = origin?.provenance;
  const samples = made?.num_accepted ? `, from ${plural(made.num_accepted, "sample")}` : "";
  const note = source.charAt(0).toUpperCase() + source.slice(1);
  return `${note}${samples}. Only their ratios matter: the higher a score, the more of the budget the head gets.`;
}

/** One reading, and the next in a second; none while nobody looks. */
async function follow() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    if (config === null) await start();
    if (config === null) throw new ServerGone(); // lost meanwhile
    showStats(await guarded(() => server.get("stats")));
    setStatus("live", "Live");
  } catch (error) {
    if (error instanceof KeyNeeded) return;
    if (error instanceof Refused) refuse(error);
    else if (!(error instanceof ServerGone)) throw error;
  }
  clearTimeout(timer);
  timer = setTimeout(follow, EVERY);
}

function showStats(stats) {
  const [used, stock] = [stats.blocks_in_use, stats.stock_blocks];
  byId("usage-problem").hidden = byId("notice").hidden = true;
  byId("content").classList.remove("stale");
  chart.add({ time: stats.time, used, stock });
  const saved = stock - used;
  byId("saving").textContent =
    saved > 0 ? `${plural(saved, "block")} less than stock vLLM: ${bytes(saved * config.block_bytes)}, ${percent(saved / stock)}` : "";
  byId("counters").replaceChildren(...counters(stats).map(tile));
}

function counters(stats) {
  const { compression, allocation_cache: cache } = stats;
  const skipped = Object.entries(stats.skipped_requests).filter(([, number]) => number > 0);
  const reasons = skipped.map(([reason, number]) => `${reason.replace("_", " ")} ${count(number)}`);
  const pool = config.num_blocks === null ? "" : `of ${count(config.num_blocks)} in the pool`;
  const kept = stats.prompt_tokens ? `${percent(stats.kept_tokens / stats.prompt_tokens)} of ${count(stats.prompt_tokens)}` : "";
  return [
    ["Requests running", count(stats.running_requests), `${count(stats.waiting_requests)} waiting, ${count(stats.live_compressed_requests)} compressed`],
    ["Blocks in use", count(stats.blocks_in_use), pool],
    ["Head blocks", count(stats.head_blocks_in_use), "of live compressed requests"],
    ["Requests compressed", count(stats.compressed_requests), reasons.length ? `left whole: ${reasons.join(", ")}` : "none left whole"],
    ["Prompt tokens kept", count(stats.kept_tokens), kept],
    ["Blocks freed", count(stats.freed_blocks), bytes(stats.freed_blocks * config.block_bytes)],
    ["Time per compression", compression.number ? seconds(compression.seconds / compression.number) : "none yet", `${seconds(compression.seconds)} in all`],
    ["While they generate", count(stats.compressions.generation ?? 0), `compressions, and ${count(stats.compressions.prefill ?? 0)} while prompts were read`],
    ["Plan cache", `${count(cache.hits)} hits`, `${count(cache.misses)} missed, ${count(cache.size)} held`],
  ];
}

function tile([name, value, note]) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, note)));
}

function setStatus(state, text) {
  const status = byId("status");
  if (status.dataset.state === state && status.textContent === text) return; // read out once
  status.dataset.state = state;
  status.textContent = text;
}

function notify(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = false;
}

/** The server may come back as another one, so everything is asked anew. */
function lose(error) {
  config = null;
  setStatus("gone", "No answer");
  notify(`The server does not answer (${error.message}). Trying again every second.`);
  byId("content").classList.add("stale");
}

/** Without a model there is nothing to show; without statistics, there are only no live numbers. */
function refuse(error) {
  setStatus("gone", "No data");
  if (config === null) return notify(error.message);
  byId("usage-problem").textContent = error.message;
  byId("usage-problem").hidden = false;
}

function askForKey() {
  if (!byId("key-form").hidden) return;
  const refused = server.key !== null;
  server.key = null;
  config = null;
  byId("key-reason").textContent = refused ? "It did not take the key that it was given." : "Its data routes are guarded.";
  byId("content").hidden = byId("forget").hidden = byId("notice").hidden = true;
  byId("key-form").hidden = false;
  setStatus("gone", refused ? "Wrong key" : "Key needed");
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  server.key = byId("key").value.trim();
  byId("key").value = "";
  byId("key-form").hidden = true;
  follow();
});
byId("forget").addEventListener("click", () => {
  server.key = null;
  chart.clear();
  follow();
});
document.addEventListener("visibilitychange", follow);
follow();
