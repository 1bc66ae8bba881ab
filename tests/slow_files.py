"""Files that take longest, most of it in waiting for processes that they have started.

They go first: one that came last would keep a worker busy while the others have finished.
"""

SLOW = (
    "test_workers.py",
    "test_evolve.py",
    "test_processes.py",
    "test_tutorials.py",
    "test_diagnose.py",
    "test_packaging.py",
    "test_llm_study.py",
    "test_contract.py",
    "test_inner_loop.py",
    "test_noise_budget.py",
    "test_samples.py",
)
