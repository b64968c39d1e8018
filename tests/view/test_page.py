"""The page in a real browser: it shows what the files hold, and nothing in them becomes markup."""

import base64
import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tarl_jax.config import ConfigError, InputError, RunConfig
from tarl_jax.runs.directory import LOCK, open_run_dir
from tarl_jax.runs.metrics import MetricsWriter, append_trajectories
from tarl_jax.speech.sound import Sound
from tarl_jax.types import Call, Segment, Task, Trajectory
from tarl_jax.view.__main__ import main
from tarl_jax.view.document import report
from tarl_jax.view.records import answer, open_source
from tarl_jax.view.server import make_server

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = ["<img src=x onerror=\"document.title='broken'\">", "</script><script>document.title="
           "'broken'</script>", "\" onmouseover=\"document.title='broken'", "javascript:alert(1)",
           "<!-- <script>", "&lt;b&gt;", "\u202eright to left", "<|im_end|>"]
RESULTS = {
    "timestamp": "2026-11-28T10:00:00",
    "info": {"num_trials": 2, "agent_info": {"implementation": "llm_agent", "llm": "some-model"},
             "environment_info": {"domain_name": "bank", "policy": "Be kind."}},
    "tasks": [{"id": "7", "user_scenario": {"instructions": "Wants a lamp."},
               "evaluation_criteria": {"actions": [
                   {"name": "order", "arguments": {"item": "lamp"}, "compare_args": None}]}}],
    "simulations": [{
        "id": str(trial), "task_id": "7", "trial": trial, "termination_reason": "user_stop",
        "duration": 3.0, "seed": trial,
        "reward_info": {"reward": float(trial), "action_checks": [
            {"action": {"name": "order", "arguments": {"item": "lamp"}},
             "action_match": bool(trial)}]},
        "messages": [
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": f"A lamp, please. {HOSTILE[0]}"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "a", "name": "order", "arguments": {"item": "lamp"}}]},
            {"role": "tool", "id": "a", "content": "{\"price\": 3}", "error": not trial},
            {"role": "assistant", "content": f"Done {trial}."},
        ],
    } for trial in (0, 1)],
}


def episode(number: int, success: bool, clip: np.ndarray | None = None) -> Trajectory:
    """Of a group of four; its texts hold markup of all kinds."""
    task = Task(f"shop-{number // 4}", "ada_1", f"Wants {HOSTILE[0]}",
                (Call("cancel", {"id": "#W1"}),), (), "train", "shop", None, 3)
    tokens = [5, 6, 7]
    user = Segment.forced("user", [3, 3], -1, f"Cancel it. {HOSTILE[number % len(HOSTILE)]}")
    if clip is not None:
        user.sound = Sound(0, 2, clip)
        user.info |= {"spoken": {"voice": "en-us", "words": "Cancel it, uh, now."},
                      "heard": f"cancel at. {HOSTILE[number % len(HOSTILE)]}"}
    call = Segment("agent", tokens, [True, True, False], [-0.1, -3.0, 0.0], 0,
                   "<think>\nhe wants it\n</think>\n\n<tool_call>\n{}\n</tool_call>",
                   calls=[Call("get_order", {"id": f"#W{number % 4}{HOSTILE[1]}"})],
                   thought="he wants it")
    said = f"Done {number}. {HOSTILE[2]}"
    end = Segment("agent", tokens, [True] * 3, [-0.5] * 3, 1, said, said)
    return Trajectory(
        task, number, [
            Segment.forced("system", [1], -1, HOSTILE[1]), user, call,
            Segment.forced("tool", [4], 0, json.dumps({"status": HOSTILE[0]}), error=not success),
            end,
        ],
        "user_stop" if success else "max_turns", success,
        diff=[f"orders #W1 status: 'pending' -> '{HOSTILE[0]}'"],
        gold_diff=[] if success else ["orders #W2 status: 'cancelled' -> 'pending'"],
        turn_scores=[1, 0] if success else [0, -1], turn_minors=[False, success],
        judge_notes=["looks it up", f"claims {HOSTILE[0]}"],
        reward=12.0 if success else -5.0, reward_parts={"terminal": 10.0 * success},
        advantages=[[0.75], [-0.5, 0.25, 1.0]],
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of 200 episodes in its last step, some of them spoken."""
    run = open_run_dir(RunConfig(workdir=str(tmp_path_factory.mktemp("runs") / "first")))
    clip = (np.sin(np.arange(8000) / 5) * 8000).astype(np.int16).astype(np.float32) / 32768
    pytest.importorskip("soundfile")
    append_trajectories(run, 1, [episode(i, i % 3 == 0) for i in range(8)])
    append_trajectories(run, 2, [episode(i, i % 3 == 0, clip if i == 1 else None)
                                 for i in range(200)])
    append_trajectories(run, 0, [episode(0, True)], kind="eval")
    with MetricsWriter(run) as writer:
        writer.write(0, "base", {"eval/pass^1": 0.25, "eval/pass^1_low": 0.2,
                                 "eval/pass^1_high": 0.3})
        for step in (1, 2):
            writer.write(step, "train", {"train/pass_rate": 0.3 + 0.1 * step, "rl/kl": 0.01})
        writer.write(2, "final", {"eval/pass^1": 0.5, "eval/pass^1_low": 0.45,
                                  "eval/pass^1_high": 0.55})
    return run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("tau2") / "mine.json"
    path.write_text(json.dumps(RESULTS))
    return path


@contextlib.contextmanager
def served(*paths):
    with make_server([open_source(str(path)) for path in paths]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Calls a function with a fresh page of a browser; Playwright has a thread of its own.

    The call fails for any error in the page's scripts, any request to elsewhere, and where text of
    a run has become a script. refused: the server may refuse what the page asks for.
    """
    if not BROWSER:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")

    def begin():
        running = playwright.sync_playwright().start()
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        return running, running.chromium.launch(executable_path=BROWSER, args=flags)

    def look(body, refused=False):
        context = found.new_context(viewport={"width": 1200, "height": 800})
        page, faults = context.new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error"
                and "ERR_CONNECTION_REFUSED" not in said.text  # the server has ended
                and not (refused and "status of 404" in said.text) else None)
        page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(
            ("http://127.0.0.1:", "file://", "data:")) else None)
        page.set_default_timeout(15_000)
        try:
            body(page)
            assert not faults and page.title() == "tarl_jax"
        finally:
            context.close()

    with ThreadPoolExecutor(1) as thread:
        running, found = thread.submit(begin).result()
        yield lambda body, **how: thread.submit(look, body, **how).result()
        thread.submit(found.close).result()
        thread.submit(running.stop).result()


def until(page, expression):
    """Waits for it; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(150):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {expression}")


# ---- in the browser --------------------------------------------------------------------------


def test_curves_show_each_run_and_its_intervals(browser, run_dir, tmp_path):
    def look(page):
        other = shutil.copytree(run_dir, tmp_path / "second")
        with served(run_dir, other) as address:
            page.goto(address)
            panel = page.locator(".chart", has_text="Pass rate").first
            panel.wait_for()
            colours = {c.get_attribute("stroke") for c in panel.locator("path").all()}
            assert {"var(--s0)", "var(--s1)"} <= colours  # a colour per run
            assert panel.locator("path[opacity='0.15']").count() == 2  # a band per run
            box = panel.locator("svg").first.bounding_box()
            page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 60)
            assert "step 2" in panel.locator(".reading").inner_text()
            assert "0.500 (0.450 to 0.550)" in panel.locator(".reading").inner_text()
            page.get_by_role("checkbox").nth(1).uncheck()
            until(page, "document.querySelectorAll('.chart path[opacity]').length === 1")
            page.get_by_label("another metric").fill("rl/kl")
            page.keyboard.press("Enter")
            page.get_by_role("heading", name="rl/kl").wait_for()

    browser(look)


def test_evaluations_have_intervals_and_differences(browser, run_dir):
    def look(page):
        with served(run_dir) as address:
            page.goto(address + "#view=evaluations")
            row = page.locator("tbody tr").nth(1)
            row.wait_for()
            interval = "0.450\u20130.550"
            words = row.inner_text().split()
            assert words == ["first", "trained", "2", "0.500", interval, "+0.250"]

    browser(look)


def test_episodes_are_filtered_and_read(browser, run_dir):
    def look(page):
        with served(run_dir) as address:
            page.goto(address + "#view=episodes")
            page.locator("#count", has_text="200 of 200").wait_for()
            page.get_by_label("verdict").select_option("success")
            page.locator("#count", has_text="67 of 200").wait_for()
            page.get_by_label("deviation").select_option("major")
            page.get_by_text("No episode fits.").wait_for()
            page.get_by_label("verdict").select_option("")
            page.locator("#count", has_text="133 of 200").wait_for()
            page.get_by_label("ended by").select_option("max_turns")
            page.get_by_label("find").fill("shop-3")
            page.keyboard.press("Enter")
            left = sum(i % 3 > 0 and f"shop-{i // 4}".startswith("shop-3") for i in range(200))
            page.locator("#count", has_text=f"{left} of 200").wait_for()
            page.get_by_label("step").select_option("1")
            page.get_by_text("No episode fits.").wait_for()  # step 1 has but shop-0 and shop-1

    browser(look)


def test_an_episode_shows_thought_call_scores_notes_and_changes(browser, run_dir):
    def look(page):
        with served(run_dir) as address:
            page.goto(address + "#view=episodes&kind=train&step=2&i=1")
            agent = page.locator(".said.agent")
            agent.first.wait_for()
            assert agent.nth(0).locator(".thought").inner_text() == "he wants it"
            assert agent.nth(0).locator(".call").inner_text().startswith('get_order(id="#W1')
            assert "advantage +0.75" in agent.nth(0).inner_text()
            assert "\u22121 major" in agent.nth(1).inner_text()
            assert f"claims {HOSTILE[0]}" in agent.nth(1).inner_text()
            changed = page.locator(".diff").nth(0)
            assert changed.locator("del").inner_text() == "'pending'"
            assert changed.locator("ins").inner_text() == f"'{HOSTILE[0]}'"
            assert "should be" in page.locator(".diff").nth(1).inner_text()
            # Sound, beside its transcript.
            assert page.locator(".said.user audio").count() == 1
            assert "Cancel it." in page.locator(".said.user").inner_text()
            # What was heard, and where it is not what was written.
            heard = page.locator(".said.user .heard")
            assert "said: Cancel it, uh, now." in heard.inner_text()
            assert "heard: cancel at." in heard.inner_text()
            assert heard.locator("mark").all_inner_texts() == ["at."]
            page.evaluate("document.querySelector('audio').play()")
            until(page, "document.querySelector('audio').currentTime > 0.05")
            # Token ids on demand.
            assert page.locator(".token").count() == 0
            page.locator("#tokens").click()
            page.locator(".agent .token").first.wait_for()
            titles = [t.get_attribute("title") for t in agent.nth(1).locator(".token").all()]
            assert titles[1] == "id 6, log-prob -0.500, advantage +0.2500"
            assert "forced" in agent.nth(0).locator(".token").nth(2).get_attribute("title")

    browser(look)


def test_what_a_run_holds_never_becomes_markup(browser, run_dir):
    def look(page):
        with served(run_dir) as address:
            for number in range(len(HOSTILE)):
                page.goto(f"{address}#view=episodes&kind=train&step=2&i={number}&tokens=1")
                page.locator(".said.user").wait_for()
                until(page, f"location.hash.includes('i={number}&')")
                page.locator(".said.user .text", has_text=HOSTILE[number]).wait_for()
            assert page.locator("main img, main script").count() == 0

    browser(look)


def test_two_episodes_stand_side_by_side_where_they_part(browser, run_dir):
    def look(page):
        with served(run_dir) as address:
            page.goto(address + "#view=episodes&kind=train&step=2&i=0")
            page.locator(".beside").first.click()
            page.locator("#parting").wait_for()
            pair = page.locator(".pair .talk")
            assert pair.count() == 2
            assert pair.nth(0).locator("mark").first.inner_text() != pair.nth(1).locator(
                "mark").first.inner_text()
            assert [p.locator(".forked").count() for p in pair.all()] == [1, 1]
            assert "get_order" in pair.nth(1).locator(".forked").inner_text()

    browser(look)


def test_keys_lead_through_the_page(browser, run_dir):
    def look(page):
        with served(run_dir) as address:
            page.goto(address + "#view=episodes&i=0")
            page.locator(".said.agent").first.wait_for()
            page.keyboard.press("j")
            page.locator('.item[data-index="1"][aria-selected="true"]').wait_for()
            page.keyboard.press("t")
            page.locator(".agent .token").first.wait_for()
            page.keyboard.press("c")
            until(page, "document.getElementById('colour').value === 'advantage'")
            page.keyboard.press("b")
            page.locator("#parting").wait_for()
            page.keyboard.press("Escape")
            page.locator("#colour").wait_for()
            page.keyboard.press("[")
            page.locator("#count", has_text="of 8").wait_for()
            before = page.evaluate("document.documentElement.dataset.theme")
            page.keyboard.press("d")
            assert page.evaluate("document.documentElement.dataset.theme") != before
            page.keyboard.press("/")
            page.keyboard.type("jjj")  # letters, where one types
            assert page.get_by_label("find").input_value() == "jjj"
            page.get_by_label("find").blur()
            page.keyboard.press("1")
            page.locator(".chart").first.wait_for()
            page.keyboard.press("?")
            page.locator("dialog").wait_for()

    browser(look)


def test_a_run_that_goes_on_is_followed(browser, run_dir, tmp_path):
    def look(page):
        run = shutil.copytree(run_dir, tmp_path / "going")
        (run / LOCK).touch()  # somebody writes there
        with served(run) as address:
            page.goto(address + "#view=episodes&kind=train&step=2")
            page.locator("#count").wait_for()
            page.locator(".live").wait_for()
            append_trajectories(run, 3, [episode(1, True)])
            with MetricsWriter(run) as writer:
                writer.write(3, "train", {"train/pass_rate": 0.9})
            page.locator("header", has_text="step 3 of").wait_for()
            page.get_by_label("step").select_option("3")
            page.locator("#count", has_text="1 of 1").wait_for()

    browser(look)


def test_what_cannot_be_read_is_said_beside_what_can(browser, run_dir, tmp_path):
    def look(page):
        broken, going = (shutil.copytree(run_dir, tmp_path / name) for name in ("broken", "going"))
        (broken / "config.json").write_text('{"rl.steps": 3')
        (going / "metrics.jsonl").write_text('{"step": 1e999}\n')
        with served(run_dir, broken, going) as address:
            page.goto(address)
            page.locator(".chart").first.wait_for()
            assert page.locator("header > *").all_inner_texts()[-2:] == ["◐", "?"]
            assert "false" not in page.locator("header").inner_text()
            told = page.locator("main > .problem").all_inner_texts()
            assert len(told) == 2 and "config.json:1" in told[0] and "metrics.jsonl:1" in told[1]
            page.goto(f"{address}#view=episodes&run=1")  # from which another is chosen
            page.locator("main .empty").wait_for()
            page.get_by_label("run").select_option("0")
            page.locator("#count", has_text="200 of 200").wait_for()
            page.keyboard.press("1")
            shutil.rmtree(going)
            page.locator(".problem", has_text="is gone").wait_for()
            page.route("**/api/**", lambda route: route.abort("connectionrefused"))
            page.locator("header .problem", has_text="the command has ended").wait_for()
            assert page.locator(".chart").count() > 0
            page.unroute("**/api/**")
            until(page, "!document.querySelector('header .problem')")

    browser(look, refused=True)


def test_what_is_huge_is_drawn(browser, run_dir):
    """More numbers than a call takes arguments, and than can be gone through once for each."""
    def look(page):
        with served(run_dir) as address:
            page.goto(address)
            page.locator(".chart").first.wait_for()
            assert page.evaluate("""() => {
                const made = (_, i) => ({step: i, "rl/kl": i / 1e6});
                const records = Array.from({length: 200000}, made);
                return panel("KL", [["rl/kl", "KL"]], [{name: "long", records}]).textContent;
            }""").startswith("KL")
            assert page.evaluate("""() => {
                const e = {advantages: [Array(130000).fill(-0.5)], pieces: {}};
                const seg = {role: "agent", turn: 0, ids: Array(130000).fill(5),
                             sampled: Array(130000).fill(true), log_probs: Array(130000).fill(-1)};
                return tokensView(e, seg, "advantage").childElementCount;
            }""") == 130_000

    browser(look)


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("view", ["curves", "evaluations", "episodes", "episodes&i=1&tokens=1",
                                  "episodes&i=1&beside=2", "runs"])
def test_nothing_is_wider_than_the_screen(browser, run_dir, view, width):
    def look(page):
        page.set_viewport_size({"width": width, "height": 700})
        with served(run_dir) as address:
            page.goto(f"{address}#view={view}")
            page.locator("main > :not(.empty)").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if view == "episodes&i=1&tokens=1":  # on a phone the list makes room
                assert page.locator(".list").is_visible() == (width > 800)

    browser(look)


def test_a_command_is_broken_between_its_words_alone(browser, run_dir):
    said = ["main.py", "--config=a-very-long/" + "folder-" * 30 + "of-configs.py", "--debug"]
    path = run_dir / "versions.json"
    kept = path.read_text()
    *before, last = json.loads(kept)  # one record per start
    path.write_text(json.dumps([*before, {**last, "command": said}]))

    def look(page):
        with served(run_dir) as address:
            page.goto(f"{address}#view=runs")
            words = page.locator("dd .word")
            words.first.wait_for()
            assert words.all_inner_texts() == said
            heights = words.evaluate_all("all => all.map(w => w.getBoundingClientRect().height)")
            assert heights[0] == heights[2] < heights[1]

    try:
        browser(look)
    finally:
        path.write_text(kept)


def test_results_of_tau2_bench_are_read(browser, results):
    def look(page):
        with served(results) as address:
            page.goto(address)
            page.locator("#count", has_text="2 of 2").wait_for()
            page.locator(".item").nth(0).click()
            page.locator(".said.agent .call", has_text='order(item="lamp")').wait_for()
            text = page.locator(".detail").inner_text()
            assert "Wants a lamp." in text and HOSTILE[0] in text and "not made" in text
            page.keyboard.press("2")
            page.locator("tbody td", has_text="0.500").wait_for()

    browser(look)


def test_the_report_opens_from_disk_without_a_network(browser, run_dir, tmp_path):
    def look(page):
        out = tmp_path / "report.html"
        assert main([str(run_dir), f"--out={out}", "--files=1"]) == 0
        page.context.set_offline(True)
        page.goto(out.as_uri())
        page.locator(".chart").first.wait_for()
        page.keyboard.press("3")
        page.locator("#count", has_text="200 of 200").wait_for()
        page.locator(".item").nth(1).click()
        page.locator(".said.user audio").wait_for()
        page.evaluate("document.querySelector('audio').play()")
        until(page, "document.querySelector('audio').currentTime > 0.05")

    browser(look)


# ---- without one -----------------------------------------------------------------------------


def test_a_report_holds_every_answer_and_no_address(run_dir):
    text = report([open_source(str(run_dir))], files=1)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    episodes = [key for key in data["answers"] if key.startswith("episode/0/train/2/")]
    assert len(episodes) == 200 and "episodes/0/train/1" not in data["answers"]
    (sound,) = data["clips"].values()
    assert base64.b64decode(sound.partition(",")[2])[:4] == b"fLaC"
    assert not re.search(r"(src|href)=\"(https?:)?//", text)


def test_the_server_answers_its_own_page_alone(run_dir, tmp_path):
    (tmp_path / "secret.flac").write_bytes(b"no")
    with served(run_dir) as address:
        def status(path, **headers):
            request = urllib.request.Request(address + path, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return response.status
            except urllib.error.HTTPError as error:
                return error.code

        assert status("") == status("api/state") == 200
        assert status("api/state", Host="evil.example:80") == 403
        for path in ("api/episode/0/train/2/999", "api/episodes/7/train/2", "api/episodes/0/x/2",
                     "api/metrics/-1", "api/", "clip/0/..%2f..%2fconfig.json", "clip/0/none.flac",
                     "clip/9/a.flac", "etc/passwd", "api/episodes/0/train/%C2%B2"):
            assert status(path) == 404, path


def test_what_cannot_be_looked_at_is_named(tmp_path, run_dir, capsys):
    (tmp_path / "a.json").write_text("{}")
    for given, words in (
        ([tmp_path / "absent"], "no such run"), ([tmp_path], "holds no run"),
        ([tmp_path / "a.json", "--out=x.html"], "results.json"),
        ([run_dir, "--out=/no/such/folder/x.html"], "--out=/no/such/folder/x.html"),
        ([run_dir, run_dir, "--list"], "one run is shown"),
        ([run_dir, "--out=x.html", "--files=0"], "--files=0"),
    ):
        assert main([str(a) for a in given]) == 2
        assert words in capsys.readouterr().err
    with make_server([]) as server, pytest.raises(ConfigError, match="cannot be taken"):
        make_server([], server.server_port)
    broken = tmp_path / "b.jsonl"
    broken.write_text(episode(0, True).to_json_line() + "\n{}\n")
    with pytest.raises(InputError, match=r"b\.jsonl:2: not an episode"):
        answer([open_source(str(broken))], "episodes/0/train/0")


def test_curves_are_drawn_for_a_run_that_has_stopped(run_dir, capsys):
    assert main([str(run_dir), "--curves"]) == 0
    picture = Path(capsys.readouterr().out.strip())
    assert picture.parent == run_dir and picture.read_bytes()[:4] == b"\x89PNG"


def test_old_episodes_are_shown_too(tmp_path):
    data = json.loads(dataclasses.replace(episode(0, True), turn_minors=None).to_json_line())
    for name in ("advantages", "turn_minors"):
        del data[name]
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps(data) + "\n")
    found = answer([open_source(str(path))], "episode/0/train/0/0")
    assert found["minors"] is None and "advantages" not in found


def test_what_nobody_heard_is_told_from_what_was_said(tmp_path):
    found = episode(0, True)
    said, both, broken = (Segment("agent", [5], [True], [-1.0], turn, text) for turn, text in
                          enumerate(("Hi.", "Hi. <mumble>", "<tool_call>{")))
    said.message, both.message, both.unheard = "Hi.", "Hi.", "<mumble>"
    path = tmp_path / "a.jsonl"
    path.write_text(dataclasses.replace(found, segments=[said, both, broken]).to_json_line() + "\n")
    segments = answer([open_source(str(path))], "episode/0/train/0/0")["segments"]
    assert [(s["text"], s["unheard"]) for s in segments] == [
        ("Hi.", ""), ("Hi.", "<mumble>"), ("<tool_call>{", "")]
