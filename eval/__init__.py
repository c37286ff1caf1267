"""What a frozen encoder is worth: k-NN, linear and attentive probes, retrieval, each a command `python -m eval.<name>`.

datasets (who is in it) -> reading, views (what of a clip is seen) -> encoder -> features -> knn | retrieval | probes -> report
"""
