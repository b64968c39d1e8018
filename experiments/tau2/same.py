"""Whether our own evaluation gives every simulation of the harness the same reward.

    python experiments/tau2/harness.py TAU2 --out=FOLDER --user_url=URL --user_model=NAME \\
        --max_steps=N -- ARGUMENTS
    python experiments/tau2/same.py TAU2 --out=FOLDER --user_url=URL --user_model=NAME \\
        --max_steps=N -- ARGUMENTS

plays the tasks of FOLDER/results/DOMAIN with the same policy (ARGUMENTS are those of the server, a
--config among them), temperature and seeds as the harness did, against the same user, which has to
answer the same to the same. Episodes are played as served (`rollout.as_served`): turns that
cannot be read are written again, and cost nothing. Left out are rewards that hang on assertions,
which only the harness's judge knows. FOLDER/ours/DOMAIN/tau2/step_000000/results.json is what our
evaluation wrote, for the benchmark's own commands. The exit status is 1 where a reward differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the harness's")
    parser.add_argument("--domains", nargs="+", default=["retail", "airline", "telecom"])
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--user_url", required=True)
    parser.add_argument("--user_model", default="user")
    given = parser.parse_args(arguments[:split])
    sys.argv = [sys.argv[0], *arguments[split + 1 :]]

    from tarl_jax.runs.command import run_with_config

    def options(more: argparse.ArgumentParser) -> None:
        more.add_argument("--context", type=int, default=0)
        more.add_argument("--turn", type=int, default=0)
        more.add_argument("--own_system", default="False")

    def play(config: Any, parts: Any, served: argparse.Namespace) -> None:
        if sum(compare(given, domain, config, served) for domain in given.domains):
            sys.exit(1)

    run_with_config(__doc__ or "", play, options)


def compare(
    given: argparse.Namespace, domain: str, config: Any, served: argparse.Namespace
) -> int:
    """Plays a domain's simulations again; returns how many rewards differ."""
    from tarl_jax.config import LLMConfig
    from tarl_jax.rollout.environment import Environment
    from tarl_jax.rollout.sampling import Truncation
    from tarl_jax.sandbox import load_benchmark_tasks, load_domain
    from tarl_jax.serve.policy import load_policy
    from tarl_jax.training.evaluation import save_results, tau2_reward
    from tarl_jax.training.parts import Parts

    path = given.out / "results" / domain / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    simulations = sorted(results["simulations"], key=lambda s: str(s["task_id"]))
    data = given.checkout / "data" / "tau2" / "domains" / domain
    llm = LLMConfig(model=given.user_model, base_url=given.user_url, api_key_env="",
                    temperature=0.0)
    replace, run, parts = dataclasses.replace, config.rollout, Parts()
    _, trained, params = load_policy(config, parts)
    trained.close()
    brief = served.own_system.lower() == "true"
    config = replace(
        config,
        sandbox=replace(config.sandbox, domain=domain, data=str(data)),
        user=replace(config.user, kind="llm", llm=llm),
        eval=replace(config.eval, temperature=given.temperature),
        rollout=replace(
            run, max_turns=0, max_messages=given.max_steps, slots=8, constrain_calls=True,
            as_served=True, system_prompt="brief" if brief else run.system_prompt,
            max_episode_tokens=served.context or run.max_episode_tokens,
            max_turn_tokens=served.turn or run.max_turn_tokens),
    )
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    tasks = {t.task_id: t for t in load_benchmark_tasks(domain, data, load_domain(domain, data))}
    episodes = [env.episode(tasks[f"tau2/{domain}/{s['task_id']}"], "eval", 0, s["trial"])
                for s in simulations]
    for simulation, episode in zip(simulations, episodes, strict=True):
        episode.seed = simulation["seed"]
    cut = Truncation(run.top_k, run.top_p, run.min_p)
    try:
        env.engine().run(params, episodes, given.temperature, truncation=cut)
    finally:
        env.close()
    trajectories = [episode.trajectory() for episode in episodes]
    save_results(given.out / "ours" / domain, 0, env, trajectories)
    different, known = [], 0
    for simulation, trajectory in zip(simulations, trajectories, strict=True):
        ours = tau2_reward(trajectory)
        theirs = (simulation["reward_info"] or {}).get("reward")
        known += ours is not None
        if ours is not None and ours != theirs:
            different.append((simulation["task_id"], ours, theirs, trajectory.stop_reason,
                              simulation["termination_reason"]))
    print(f"{domain}: {len(simulations)} simulations, {known} rewards compared,"
          f" {len(different)} differ",
          *different, sep="\n  ")
    return len(different)


if __name__ == "__main__":
    main()
