"""A campaign of random attacks: odd data, arguments and folders, kills, full disks, rivals, threads.

Each part is a file with a function that runs one case. A case is made from the seed, the part and
its number, and runs in a forked process with limits. Run it at any size:

    make campaign SEED=3 SIZE=1000
    PYTHONPATH=tests python -m campaign --seed 3 --size 1000 --part data

``--case 17`` repeats one case. The suite runs a few cases of each part (``test_campaign.py``).
"""
