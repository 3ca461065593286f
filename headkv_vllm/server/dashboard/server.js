// SPDX-License-Identifier: Apache-2.0
// The data routes of the server that this page came from.

const KEY_NAME = "headkv-api-key";
const PATIENCE = 10_000; // milliseconds

/** The server wants an API key, or another than it was given. */
class KeyNeeded extends Error {}
/** No answer, or none that this server would give. */
class ServerGone extends Error {}
/** The server says why it does not do as asked. */
class Refused extends Error {}

class Server {
  constructor() {
    // Where the server is reached behind a path of a proxy, so are its data routes.
    const before = location.pathname.replace(/\/(v1\/)?headkv\/dashboard\/?$/, "");
    this.base = `${before}/v1/headkv/`;
  }

  get key() {
    return sessionStorage.getItem(KEY_NAME);
  }

  set key(key) {
    if (key === null) sessionStorage.removeItem(KEY_NAME);
    else sessionStorage.setItem(KEY_NAME, key);
  }

  get(path) {
    return this.ask(path, {});
  }

  post(path, body) {
    const headers = { "Content-Type": "application/json" };
    return this.ask(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  async ask(path, options) {
    const headers = { ...options.headers };
    if (this.key !== null) headers.Authorization = `Bearer ${this.key}`;
    const response = await this.fetch(path, { ...options, headers });
    if (response.status === 401) throw new KeyNeeded();
    const answer = await response.json().catch(() => {
      throw new ServerGone(`it answers ${response.status} without JSON`);
    });
    if (response.ok) return answer;
    if (response.status >= 500) throw new ServerGone(`it answers ${response.status}`);
    throw new Refused(answer.error?.message ?? `The server answers ${response.status}.`);
  }

  async fetch(path, options) {
    try {
      const signal = AbortSignal.timeout(PATIENCE);
      return await fetch(this.base + path, { ...options, signal, cache: "no-store" });
    } catch (error) {
      if (error instanceof TypeError || error.name === "TimeoutError") {
        throw new ServerGone(error.name === "TimeoutError" ? "it takes too long" : "no connection");
      }
      throw error;
    }
  }
}
