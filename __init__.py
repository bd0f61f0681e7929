"""edgeseg: distil, export, run and measure small breast-ultrasound segmentation networks."""

__version__ = "0.1.0"
