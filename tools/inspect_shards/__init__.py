"""Look into shards of any format that training reads.

statistics   numbers of all samples, with what is damaged
sheet        a page with pictures of some of them
"""
