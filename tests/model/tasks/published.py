"""Small data in the formats in which the papers' tasks were published."""

from pathlib import Path

STATIONS = """"id","latitude","longitude","name","display_name","zone","total_lines","rail"
1,51.50,-0.20,"Ash","Ash<br />Road",1,3,0
2,51.50,-0.10,"Beech",NULL,1.5,3,0
3,51.51,-0.15,"Cherry",NULL,1,1,0
4,51.50,-0.15,"Elder",NULL,1,3,0
5,51.50,-0.01,"Fir",NULL,2,3,0
"""
LINES = '"line","name","colour","stripe"\n1,"Red Line","FF0000",NULL\n2,"Blue Line","0000FF",NULL\n3,"Dun","AAA",NULL\n'
# Red goes straight on from Ash to Fir, blue by Cherry past Elder, dun to and fro.
CONNECTIONS = """"station1","station2","line","time"
1,4,1,2
4,2,1,2
2,5,1,2
1,3,2,1
3,2,2,1
4,2,2,1
5,2,2,1
1,4,3,1
2,4,3,1
5,2,3,1
"""
WHERE = """1 Ada went to the Attic.
2 Ben is in the cellar.
3 Where is Ada?\tattic\t1
4 Ada went to the cellar.
5 Where is Ada?\tcellar\t4
1 Ben went to the attic.
2 Where is Ben?\tattic\t1
"""
PATHS = """1 The attic is north of the cellar.
2 How do you go from the cellar to the attic?\tn,n\t1
"""


def write_underground(folder: Path) -> None:
    """Four stations and three lines, as the tables of the London Underground have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("stations", STATIONS), ("lines", LINES), ("connections", CONNECTIONS)):
        (folder / f"london.{name}.csv").write_text(text)


def write_babi(folder: Path) -> None:
    """Two tasks of bAbI, the same stories to train on and to be tested with, beside a file that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("qa1", WHERE), ("qa19_path-finding", PATHS)):
        (folder / f"{name}_train.txt").write_text(text)
        (folder / f"{name}_test.txt").write_text(text)
    (folder / "README.txt").write_text("not a task")
