"""The tests of the chassis, which tests/test_chassis.py runs in a rendered service of each framework."""
