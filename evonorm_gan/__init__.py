"""BigGAN-deep with a switchable norm-activation: train, sample, IS and FID."""
