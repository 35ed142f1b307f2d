"""Which method remembers best? Artsy, EASE, RanPAC, LDA and others on several streams and two backbones."""
