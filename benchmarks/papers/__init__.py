"""Do the papers' claims hold when their experiments are run again?

dualprox reproduce TABLE ... --out RUNS
python -m benchmarks.papers add RUNS... --commit HASH [--optimum FOLDER]
python -m benchmarks.papers time lenet5_mnist --set data_dir=DIR threads=1
python -m benchmarks.papers write

`add` keeps compact records of run folders, and of the folder of `dualprox study planted`, in
benchmarks/results/papers; `time` puts the times of training steps beside them; `write` makes
docs/results.md of all that is there.
"""
