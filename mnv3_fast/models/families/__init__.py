"""The one table of variants, a file for each family: whose rules a MobileNetV3 follows, and whose weights there are.

``variant.py`` says what a row holds, the other files hold the rows; ``mnv3_fast.models.variants`` finds and builds.
"""
