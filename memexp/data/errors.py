"""What a data set can be refused for."""


class DataError(Exception):
    """Data that is not there, is damaged or does not fit. The message names the file or folder and what to do."""
