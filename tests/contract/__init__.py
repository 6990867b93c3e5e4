"""The drop-in contract, a file for each of its rows: what code written for torchvision may rely on."""
