# SPDX-License-Identifier: Apache-2.0
"""The dashboard of a real server, in a real browser."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from headkv_vllm.needle.tasks import generate_samples
from tests.engine.helpers.server import wait_for
from tests.server.browser import Visit, chromium
from tests.server.guarded_server import KEY, GuardedServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
Open = Callable[..., Visit]
LAYERS, HEADS = 4, 4
expect.set_options(timeout=30_000)  # a machine that is busy says nothing of the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, guarded_server: GuardedServer) -> Iterator[Open]:
    """Opens the dashboard; with `key`, enters it. No page may complain or ask another host."""
    visits = []

    def opened(key: str | None = KEY, **arguments: Any) -> Visit:
        visit = Visit(browser, f"{guarded_server.url}/headkv/dashboard", **arguments)
        visits.append(visit)
        if key is not None:
            enter(visit, key)
            expect(visit.page.locator("#status")).to_have_text("Live")
        return visit

    yield opened
    for visit in visits:
        assert visit.messages == []
        assert {
            address for address in visit.addresses if not is_ours(address, guarded_server)
        } == set()
        visit.close()


def is_ours(address: str, server: GuardedServer) -> bool:
    return address.startswith(
        (f"{server.url}/headkv/dashboard", f"{server.url}/v1/headkv/", "data:")
    )


def enter(visit: Visit, key: str) -> None:
    visit.page.get_by_label("API key").fill(key)
    visit.page.get_by_role("button", name="Use it").click()


def cells(visit: Visit, picture: str) -> dict[tuple[int, int], float]:
    """The values of a heat map, by layer and head."""
    found = visit.page.locator(f"#{picture} rect.cell").evaluate_all(
        "cells => cells.map(({dataset: d}) => [+d.layer, +d.head, +d.value])"
    )
    return {(layer, head): value for layer, head, value in found}


def by_head(rows: list[list[float]]) -> dict[tuple[int, int], float]:
    return {
        (layer, head): value for layer, row in enumerate(rows) for head, value in enumerate(row)
    }


def totals(visit: Visit) -> dict[str, tuple[str, str]]:
    """The plan's table: HeadKV and stock vLLM by row."""
    rows = visit.page.locator("#totals tbody tr").all()
    return {
        row.locator("th").inner_text(): tuple(row.locator("td").all_inner_texts()) for row in rows
    }


def set_input(visit: Visit, identifier: str, value: int) -> None:
    """As a hand on a slider does: many values on the way, and `value` in the end."""
    visit.page.locator(f"#{identifier}").evaluate(
        """(input, value) => { for (const step of [Number(input.min), value]) {
            input.value = step; input.dispatchEvent(new Event("input")); } }""",
        value,
    )


def number(visit: Visit, selector: str) -> int:
    return int(visit.page.locator(selector).inner_text().replace(",", ""))


def test_the_page_asks_for_the_key_and_takes_it(open_page: Open) -> None:
    visit = open_page(key=None)
    expect(visit.page.locator("#key-form")).to_be_visible()
    expect(visit.page.locator("#content")).to_be_hidden()
    visit.picture("key")
    enter(visit, "another")
    expect(visit.page.locator("#key-reason")).to_contain_text("did not take the key")
    enter(visit, KEY)
    expect(visit.page.locator("#content")).to_be_visible()
    expect(visit.page.locator("#key-form")).to_be_hidden()
    visit.page.reload()
    expect(visit.page.locator("#status")).to_have_text("Live")
    visit.page.get_by_role("button", name="Forget the key").click()
    expect(visit.page.locator("#key-form")).to_be_visible()
    assert visit.page.evaluate("sessionStorage.length") == 0


def test_the_scores_are_a_cell_for_each_head(
    open_page: Open, guarded_server: GuardedServer
) -> None:
    visit = open_page()
    values = by_head(guarded_server.get("scores")["values"])
    assert len(values) == LAYERS * HEADS
    assert cells(visit, "scores") == values
    expect(visit.page.locator("#scores .legend")).to_contain_text(
        f"highest {shown(max(values.values()))}"
    )
    visit.page.locator("#scores rect[data-layer='1'][data-head='3']").hover()
    tip = visit.page.locator("#scores .tip")
    expect(tip).to_have_text(f"layer 1, head 3: {shown(values[1, 3])}")
    visit.page.locator("#scores svg").focus()
    visit.page.keyboard.press("ArrowRight")
    expect(tip).to_have_text(f"layer 2, head 3: {shown(values[2, 3])}")


def shown(score: float) -> str:
    """Three digits, none of them a last zero."""
    return np.format_float_positional(score, 3, fractional=False, trim="-")


@pytest.mark.parametrize(("budget", "prompt_tokens"), [(512, 4608), (100, 2000), (1800, 2000)])
def test_the_slider_shows_the_servers_plan(
    open_page: Open, guarded_server: GuardedServer, budget: int, prompt_tokens: int
) -> None:
    visit = open_page()
    set_input(visit, "prompt-tokens", prompt_tokens)
    set_input(visit, "budget", budget)
    body = {"prompt_tokens": prompt_tokens, "budget": budget, "policy": "headkv"}
    plan = guarded_server.plan(body).raise_for_status().json()
    expect(visit.page.locator("#budget-number")).to_have_value(str(budget))
    held = visit.page.locator("#totals tbody tr").first.locator("td")
    expect(held).to_have_text([str(plan["num_blocks_held"]), str(plan["num_blocks_stock"])])
    assert cells(visit, "blocks") == by_head(plan["head_blocks"])
    blocks = sorted(cells(visit, "blocks").values())
    shown = totals(visit)
    assert shown["part of the prompt"][0].split()[0] == f"{100 * plan['kept_share']:.3g}"
    least_and_most = shown["blocks per head: min, mean, max"][0].split(", ")[::2]
    assert least_and_most == [f"{blocks[0]:,}", f"{blocks[-1]:,}"]
    mebibytes = f"{plan['kv_bytes_held'] / 2**20:.3g} MiB"
    assert shown["KV cache after the prompt"][0] in (
        mebibytes,
        f"{plan['kv_bytes_held'] // 1024} KiB",
    )


def test_a_plan_that_the_server_refuses_says_why(open_page: Open) -> None:
    visit = open_page()
    visit.page.locator("#budget-number").fill("3")
    problem = visit.page.locator("#plan-problem")
    expect(problem).to_contain_text("budget=3 is not allowed")
    visit.page.locator("#budget-number").fill("64")
    expect(problem).to_be_hidden()
    visit.page.locator("#policy").select_option("adakv")
    expect(visit.page.locator("#plan-note")).to_contain_text("The prompt decides")


def test_the_numbers_move_while_requests_run(
    open_page: Open, guarded_server: GuardedServer
) -> None:
    visit = open_page()
    before = guarded_server.get("stats")
    seen = set()

    def moved() -> bool:
        seen.add((number(visit, "#used-now"), number(visit, "#stock-now")))
        return len(seen) >= 4 and any(0 < used < stock for used, stock in seen)

    with asking(guarded_server, num_clients=2):
        expect(visit.page.locator("#saving")).to_contain_text("less than stock vLLM")
        visit.page.locator("#usage svg").hover()
        expect(visit.page.locator("#usage .tip")).to_contain_text("stock vLLM")
        wait_for(moved, seconds=60)
        visit.picture("load")
    expect(visit.page.locator("#used-now")).to_have_text("0")
    path = visit.page.locator("#usage path.used").last.get_attribute("d") or ""
    assert path.count("L") >= 2
    after = guarded_server.get("stats")
    assert after["compressed_requests"] >= before["compressed_requests"] + 2
    counted = f"Requests compressed\n{after['compressed_requests']:,}"
    expect(visit.page.locator("#counters")).to_contain_text(counted, use_inner_text=True)


@contextmanager
def asking(server: GuardedServer, num_clients: int) -> Iterator[None]:
    """Long prompts and long answers inside the block, one after the other for each client.

    Not streamed: a model as small as this one floods a stream, and the routes answer late.
    """
    ended = Event()

    def ask(client: int) -> None:
        for sample in generate_samples("single", 2500, 100, seed=client):
            if ended.is_set():
                return
            server.client.completions.create(
                model="needle",
                prompt=sample.prompt,
                max_tokens=1000,
                temperature=0,
                extra_body={"ignore_eos": True},
            )

    with ThreadPoolExecutor(num_clients) as threads:
        asked = [threads.submit(ask, client) for client in range(num_clients)]
        try:
            yield
        finally:
            ended.set()
    for client in asked:
        client.result()


def test_a_hidden_page_asks_for_nothing(open_page: Open) -> None:
    visit = open_page()
    asked = hide(visit, True)
    visit.page.wait_for_timeout(2500)
    assert len(visit.addresses) <= asked + 1  # the one that was under way
    asked = hide(visit, False)
    visit.page.wait_for_timeout(2500)
    assert len(visit.addresses) > asked + 1


def hide(visit: Visit, hidden: bool) -> int:
    """Have the page believe its tab hidden or shown; returns how much it had asked for by then."""
    visit.page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
    return len(visit.addresses)


def test_a_server_that_does_not_answer_is_told_of(open_page: Open) -> None:
    visit = open_page()
    visit.page.context.set_offline(True)
    expect(visit.page.locator("#notice")).to_contain_text("The server does not answer")
    expect(visit.page.locator("#status")).to_have_text("No answer")
    visit.picture("gone")
    visit.page.context.set_offline(False)
    expect(visit.page.locator("#status")).to_have_text("Live")
    expect(visit.page.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(open_page: Open, scheme: str, width: int) -> None:
    visit = open_page(scheme=scheme, width=width)
    expect(visit.page.locator("#blocks rect.cell")).to_have_count(LAYERS * HEADS)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    visit.picture(f"{scheme}-{width}")
