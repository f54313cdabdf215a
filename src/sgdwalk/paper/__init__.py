"""The paper's experiments, as any user would write them: only names in ``sgdwalk.__all__`` are used.

Chen Xing, Devansh Arpit, Christos Tsirigotis, Yoshua Bengio: A Walk with SGD, 2018.
"""
