"""Randomized smoothing (Cohen et al. 2019): certificates, the test behind them, and attacks on the smoothed classifier."""
