"""`dnc bench`, written into the documentation.

python -m bench.serving [--docs docs] [--compile] [--quick]
"""

from bench.report import finish, parser_of
from dnc_serve.client.cli.bench import measure, table


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    rounds, seconds = (1, 0.2) if arguments.quick else (5, 0.6)
    report = measure("copy", ("--durability", "async"), arguments.compile, rounds, seconds, lambda line: None)
    report["compiled"] = arguments.compile
    finish("serving", report, f"```\n{table(report)}\n```", arguments.docs)


if __name__ == "__main__":
    main()
