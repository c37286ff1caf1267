"""Are these hosts fit to train together? `python -m launch.doctor --help`; the page is docs/doctor.md."""
