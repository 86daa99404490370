"""The networks. Each takes a normalised (B, 3, H, W) float tensor."""

from engines.networks.attributes import AttributesNet
from engines.networks.detector import Detector
from engines.networks.embedder import FaceResNet, IResNet, MobileFaceNet
from engines.networks.expression import ExpressionNet
from engines.networks.hourglass import StackedHourglass

__all__ = [
    "AttributesNet",
    "Detector",
    "ExpressionNet",
    "FaceResNet",
    "IResNet",
    "MobileFaceNet",
    "StackedHourglass",
]
