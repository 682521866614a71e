"""Calls a leaking extension module, directly and by way of C."""
import sys

sys.path.insert(0, sys.argv[1])
import leaky


def serve():
    leaky.leak(10_000)  # line: leak


def through_c():
    leaky.call(lambda: serve())  # line: call


for i in range(50):
    serve()
for i in range(5):
    through_c()
