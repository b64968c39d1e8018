. /tmp/prof/env.sh
cd /work/me
exec taskset -c 1 /root/venv/bin/python -m tarl_jax.main --config=configs/omni_noisy.py --workdir=/work/runs_noisy/base0 --config.rl.steps=0 --config.eval.before=True --config.eval.every=0 --config.eval.final_tasks=96
