"""The networks. Each takes a normalised (B, 3, H, W) float tensor."""

from engines.networks.detector import Detector
from engines.networks.embedder import IResNet, MobileFaceNet
from engines.networks.hourglass import StackedHourglass

__all__ = ["Detector", "IResNet", "MobileFaceNet", "StackedHourglass"]
