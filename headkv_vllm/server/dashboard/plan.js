// SPDX-License-Identifier: Apache-2.0
// What the budget of a slider comes to, as the server works it out.

class PlanView {
  /** ask(body): the server's answer to POST plan. */
  constructor(ask) {
    this.ask = ask;
    this.map = new HeatMap(byId("blocks"), "blocks per KV head", (blocks) => this.describe(blocks));
    const [slider, number] = [byId("budget"), byId("budget-number")];
    slider.addEventListener("input", () => this.change(() => (number.value = slider.value)));
    number.addEventListener("input", () => this.change(() => (slider.value = number.value)));
    byId("policy").addEventListener("change", () => this.change());
    byId("prompt-tokens").addEventListener("input", () => this.change(() => this.bound()));
  }

  /** Take the limits and defaults of `config`, and plan for them. */
  start(config) {
    this.config = config;
    const { settings } = config;
    const length = byId("prompt-tokens");
    length.max = config.max_model_len;
    length.value = Math.min(config.max_model_len, 32_768);
    byId("policy").replaceChildren(
      ...config.policies.map(({ name }) => element("option", { value: name }, name)),
    );
    byId("policy").value = settings.policy;
    const budget = settings.keep_ratio === null ? settings.budget : Math.floor(settings.keep_ratio * length.value);
    byId("budget-number").value = budget || config.min_allowed_budget;
    this.bound();
    return this.change();
  }

  /** Budgets run from the least that is allowed to the prompt's length, or the server's ceiling. */
  bound() {
    const { settings, min_allowed_budget } = this.config;
    const [slider, prompt] = [byId("budget"), Number(byId("prompt-tokens").value)];
    slider.min = min_allowed_budget;
    slider.max = Math.max(min_allowed_budget, Math.min(prompt, settings.max_budget ?? prompt));
    slider.value = byId("budget-number").value;
  }

  /** Ask once more when something changes; while an answer is under way, only when it is here. */
  async change(adjust = () => {}) {
    adjust();
    this.stale = true;
    if (this.asking) return;
    this.asking = true;
    try {
      while (this.stale) {
        this.stale = false;
        await this.update();
      }
    } finally {
      this.asking = false;
    }
  }

  async update() {
    const problem = byId("plan-problem");
    try {
      this.show(await this.ask(this.body()));
      problem.hidden = true;
    } catch (error) {
      if (error instanceof KeyNeeded || error instanceof ServerGone) return; // the page says so
      if (!(error instanceof Refused)) throw error;
      problem.textContent = error.message;
      problem.hidden = false;
    }
  }

  body() {
    return {
      prompt_tokens: Number(byId("prompt-tokens").value),
      budget: Number(byId("budget-number").value),
      policy: byId("policy").value,
    };
  }

  show(plan) {
    this.plan = plan;
    const all = plan.head_blocks.flat();
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const mean = all.reduce((sum, blocks) => sum + blocks, 0) / all.length;
    const saved = plan.kv_bytes_stock - plan.kv_bytes_held;
    const rows = [
      ["blocks held after the prompt", count(plan.num_blocks_held), count(plan.num_blocks_stock)],
      ["blocks held until then", count(plan.num_blocks_prefill), count(plan.num_blocks_stock)],
      ["KV cache after the prompt", bytes(plan.kv_bytes_held), bytes(plan.kv_bytes_stock)],
      ["memory freed", saved > 0 ? bytes(saved) : "none", ""],
      ["tokens per KV head, mean", short(Math.round(10 * plan.mean_kept_tokens) / 10), count(plan.num_prompt_tokens)],
      ["part of the prompt", percent(plan.kept_share), percent(1)],
      ["blocks per head: min, mean, max", `${count(least)}, ${short(mean)}, ${count(most)}`, ""],
    ];
    byId("totals").tBodies[0].replaceChildren(...rows.map(planRow));
    byId("plan-note").textContent = planNote(plan);
    this.map.show(plan.head_blocks);
  }

  describe(blocks) {
    const tokens = blocks * this.plan.block_size;
    const tail = plural(this.plan.num_tail_tokens, "token");
    return `${plural(blocks, "block")}, ${plural(tokens, "token")}, and the last ${tail}`;
  }
}

function planRow([name, ours, stock]) {
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, ours), element("td", {}, stock));
}

function planNote(plan) {
  if (plan.reason !== null) return `Not compressed: ${plan.reason}.`;
  const adaptive = plan.adaptive ? " The prompt decides how the heads of a layer share their sum." : "";
  const tail = plural(plan.num_tail_tokens, "token");
  return `A block is ${plural(plan.block_size, "token")}. Every head keeps the last ${tail} besides.${adaptive}`;
}
