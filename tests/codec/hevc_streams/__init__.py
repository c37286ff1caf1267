"""HEVC streams for the reader's tests: a small writer that knows all that it coded, and a matrix of x265 streams.

`streams.STREAMS` maps names to functions that write a stream: its bytes, the luma planes that a decoder must output,
and the truth of every picture (partition, modes, QP, motion, residual, bits). `random_streams.random_stream(seed)` writes
as many more as are wanted. `matrix.configurations()` and `matrix.encode` give streams of a real encoder. FFmpeg decodes
each written stream to the intended samples (test_writer.py), which the reader has no part in.

The writer draws its decisions at random. It codes the syntax of chroma but reconstructs luma only, and keeps loop filters
off (SAO is coded with luma offsets of zero). Neither it nor the matrix exercises:

* deblocking offsets in slice headers, and SAO or deblocking parameters of slices that end within tiles' rows;
* constrained intra prediction with transform blocks of less than half the minimum coding block (FFmpeg's own prediction
  errs there, so nothing can judge it), tiles together with wavefronts (forbidden in the Main profiles);
* one random combination in 1300 (`random_stream(1214)`: constrained intra prediction, tiles, 10 bits, inter pictures),
  where FFmpeg and the writer differ in one intra block and it is not known which of them errs;
* pictures that are lost, BLA and CRA pictures whose RASL pictures are decoded from generated references;
* several layers, range extensions, field coding, separate colour planes, chroma formats other than 4:2:0, unequal bit
  depths of luma and chroma;
* RASL or RADL pictures with sub-layers (STSA), decoding at the level's limits, sizes over 328 x 200.
"""
