"""Recovery: the factors of a pruned model are trained on the dense one's predictions.

`armor.tuning.tune.tune` is the whole of it. The masks stay, and with them every byte of the form.
"""
