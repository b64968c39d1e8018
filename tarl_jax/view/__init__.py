"""Reading episodes of a run: `python -m tarl_jax.view RUN` prints one in the terminal."""
