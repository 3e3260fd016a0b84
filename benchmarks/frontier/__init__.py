"""Which method gives the most accurate network of a given size?

python -m benchmarks.frontier run --task mlp_mnist --data DIR --out runs/frontier
python -m benchmarks.frontier report --out runs/frontier
"""
