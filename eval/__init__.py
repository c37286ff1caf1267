"""What a frozen encoder is worth: `python -m eval.knn` and `python -m eval.attentive_probe`.

datasets (who is in it) -> views (what of a clip is seen) -> encoder -> features -> knn | probe
"""
